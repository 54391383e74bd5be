"""Samplers: one call is one timed forward and backward, in seconds per step.

Inputs are fresh leaves each time, and results are freed after the clock is read.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from .cases import Floor, nbytes

Sample = tuple[float, float]  # forward, backward
Sampler = Callable[[], Sample]

_MAX_COPIES = 32
_SMALL_BYTES = 64 << 20
_COPY_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}


def fresh(arguments: list[Tensor], differentiable: tuple[int, ...]) -> list[Tensor]:
    return [x.detach().requires_grad_(i in differentiable) for i, x in enumerate(arguments)]


def gradients(result: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    wanted = [x for x in leaves if x.requires_grad]
    return torch.autograd.grad(result, wanted) if wanted else ()


def cpu(function, arguments: list[Tensor], differentiable: tuple[int, ...], inner: int) -> Sampler:
    """`inner` steps a sample, so that small sizes last longer than the clock's grain."""

    def sample() -> Sample:
        forward = backward = 0.0
        for _ in range(inner):
            leaves = fresh(arguments, differentiable)
            start = time.perf_counter()
            result = function(*leaves)
            middle = time.perf_counter()
            d_leaves = gradients(result, leaves)
            end = time.perf_counter()
            forward += middle - start
            backward += end - middle
            del result, d_leaves
        return forward / inner, backward / inner

    return sample


def copies(arguments: list[Tensor]) -> list[list[Tensor]]:
    """Input sets that together exceed the L2 cache twice: each step finds its inputs cold."""
    cache = torch.cuda.get_device_properties(arguments[0].device).L2_cache_size
    count = min(_MAX_COPIES, 1 + 2 * cache // max(1, nbytes(*arguments)))
    return [arguments, *([x.clone() for x in arguments] for _ in range(count - 1))]


def is_small(arguments: list[Tensor]) -> bool:
    """Whether launches may take longer than the kernels."""
    return nbytes(*arguments) < _SMALL_BYTES


def cuda_stream(function, sets: list[list[Tensor]], differentiable: tuple[int, ...]) -> Sampler:
    """Launched from Python, rotating over the input sets; device events."""
    leaves = [fresh(each, differentiable) for each in sets]

    def sample() -> Sample:
        marks = _events()
        marks[0].record()
        results = [function(*each) for each in leaves]
        marks[1].record()
        d_leaves = [gradients(r, each) for r, each in zip(results, leaves, strict=True)]
        marks[2].record()
        del results, d_leaves
        return _elapsed(marks, len(sets))

    return sample


def cuda_graph(function, sets: list[list[Tensor]], differentiable: tuple[int, ...]) -> Sampler:
    """Two graphs, forward and backward, each over all input sets; device events around replays."""
    leaves = [fresh(each, differentiable) for each in sets]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            gradients(function(*leaves[0]), leaves[0])
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(forward):
        results = [function(*each) for each in leaves]
    held = [results]  # what the graphs write lives as long as the sampler
    if differentiable:
        with torch.cuda.graph(backward, pool=forward.pool()):
            held.append([gradients(r, each) for r, each in zip(results, leaves, strict=True)])

    def sample() -> Sample:
        assert held
        marks = _events()
        marks[0].record()
        forward.replay()
        marks[1].record()
        if differentiable:
            backward.replay()
        marks[2].record()
        return _elapsed(marks, len(sets))

    return sample


def floor(work: Floor, like: Tensor, graph: bool) -> Sampler:
    """The floor as one more contender: a copy of a large buffer, or the library's products."""
    device = like.device
    if isinstance(work.forward, tuple):
        assert isinstance(work.backward, tuple)
        halves = [[_product(*shape, like) for shape in each]
                  for each in (work.forward, work.backward)]  # fmt: skip
        if graph:
            halves = [_captured(each) for each in halves]
        return lambda: (_time(halves[0], device), _time(halves[1], device))
    assert not isinstance(work.backward, tuple)
    forward, backward, size = work.forward, work.backward, _COPY_BYTES[device.type]
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)

    def sample() -> Sample:
        seconds_a_byte = _time([lambda: target.copy_(source)], device) / (2 * size)
        return forward * seconds_a_byte, backward * seconds_a_byte

    return sample


def _captured(calls: list[Callable]) -> list[Callable]:
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return [graph.replay]


def _product(m: int, k: int, n: int, like: Tensor) -> Callable:
    a, b = like.new_empty(m, k).normal_(), like.new_empty(n, k).normal_().t()
    out = like.new_empty(m, n)
    return lambda: torch.mm(a, b, out=out)


def _time(calls: list[Callable], device: torch.device) -> float:
    if device.type == "cpu":
        start = time.perf_counter()
        for call in calls:
            call()
        return time.perf_counter() - start
    marks = _events()
    marks[0].record()
    for call in calls:
        call()
    marks[1].record()
    marks[2].record()
    return sum(_elapsed(marks, 1))


def _events() -> list[torch.cuda.Event]:
    torch.cuda.synchronize()
    return [torch.cuda.Event(enable_timing=True) for _ in range(3)]


def _elapsed(marks: list[torch.cuda.Event], steps: int) -> Sample:
    torch.cuda.synchronize()
    forward, backward = marks[0].elapsed_time(marks[1]), marks[1].elapsed_time(marks[2])
    return forward / 1e3 / steps, backward / 1e3 / steps
