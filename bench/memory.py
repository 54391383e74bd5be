"""Extra memory of one forward and backward: its peak, and what forward keeps for backward.

Peak on CUDA: `max_memory_allocated` above the start. Peak on a CPU: the largest sum of bytes that
PyTorch's allocator held at any moment above the start, from torch.profiler's memory events. Results
and gradients count, inputs do not. Scratch that native code or the product library takes by malloc
is not seen.
Kept: distinct storages that autograd saves, by `saved_tensors_hooks`, without the inputs.
"""

import contextlib
import itertools
import os
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from .timers import fresh, gradients


def extra(function, arguments: list[Tensor], differentiable: tuple[int, ...]) -> tuple[int, int]:
    """(peak, kept) in bytes."""
    if arguments[0].is_cuda:
        peak = _cuda_peak(function, arguments, differentiable)
    else:
        peak = _cpu_peak(function, arguments, differentiable)
    return peak, _kept(function, arguments, differentiable)


def _cuda_peak(function, arguments: list[Tensor], differentiable: tuple[int, ...]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    start = torch.cuda.memory_allocated()
    _step(function, arguments, differentiable)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - start


def _cpu_peak(function, arguments: list[Tensor], differentiable: tuple[int, ...]) -> int:
    from torch.profiler import ProfilerActivity, profile

    with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        _step(function, arguments, differentiable)
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), i, e.nbytes()) for i, e in enumerate(events)
                     if e.name() == "[memory]")  # fmt: skip
    return max(itertools.accumulate(change for _, _, change in changes), default=0)


def _kept(function, arguments: list[Tensor], differentiable: tuple[int, ...]) -> int:
    leaves = fresh(arguments, differentiable)
    inputs = {x.untyped_storage().data_ptr() for x in leaves}
    saved: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in inputs:
            saved[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        result = function(*leaves)
    del result
    return sum(saved.values())


def _step(function, arguments: list[Tensor], differentiable: tuple[int, ...]) -> None:
    leaves = fresh(arguments, differentiable)
    result = function(*leaves)
    gradients(result, leaves)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The profiler writes its own log to file descriptor 2."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
