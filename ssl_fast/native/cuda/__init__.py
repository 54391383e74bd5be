"""Loads the compiled module `_cuda`; its kernels by stem: tensors in, pointers and the stream down.

float32, bfloat16 and float16. Scratch comes from torch's allocator: a CUDA graph can hold it.
"""

import functools
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor


@functools.cache
def module() -> ModuleType:
    return import_module("ssl_fast._cuda")


def launch(name: str, like: Tensor, *arguments: Any) -> Any:
    """One binding, on the device of `like` and its current stream."""
    device, stream = place(like)
    return getattr(module(), name)(device, *arguments, stream)


def place(tensor: Tensor) -> tuple[int, int]:
    return tensor.device.index, torch.cuda.current_stream(tensor.device).cuda_stream


def scratch(stem: str, like: Tensor, *more: int) -> Tensor:
    """What the stem's kernels want; alive until they are enqueued."""
    bytes = _count(f"{stem}_scratch_bytes", place(like)[0], *like.shape, *more)
    return like.new_empty(bytes, dtype=torch.uint8)


def partials(count: str, like: Tensor, *shape: int) -> Tensor:
    """Room for as many sums as the binding `count` says."""
    return double(like, _count(count, place(like)[0], *shape))


@functools.lru_cache(maxsize=1024)
def _count(name: str, device: int, *shape: int) -> int:
    return getattr(module(), name)(device, *shape)


def double(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape, dtype=torch.float64)


def has_rows(tensor: Tensor) -> bool:
    """Whether elements lie side by side, as the kernels read them; any stride between rows."""
    return tensor.stride(1) == 1 or tensor.shape[1] == 1


def rows(tensor: Tensor) -> Tensor:
    return tensor if has_rows(tensor) else tensor.contiguous()


def gradient_like(logits: Tensor, out: Tensor | None) -> Tensor:
    """Where a kernel writes a gradient: `out` where that fits, else new memory."""
    if out is not None and out.dtype == logits.dtype and has_rows(out):
        return out
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def given_or_copied(written: Tensor, out: Tensor | None) -> Tensor:
    """The gradient in `out`, if there is one."""
    return written if out is None or written is out else out.copy_(written)
