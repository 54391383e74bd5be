"""Which implementation runs: the caller's choice, else the first of a table that can.

    ssl_fast.set_backend("reference")            # from here on
    with ssl_fast.set_backend("native"): ...     # inside the block
    SSL_FAST_BACKEND=triton python train.py      # for the process

A chosen backend that cannot run raises; only "auto" looks further.
"""

import contextlib
import functools
import importlib
import importlib.util
import os
from collections.abc import Iterator
from types import ModuleType

import torch

CHOICES = ("auto", "native", "triton", "reference")

# The order in which "auto" tries. CPU: measured, bench/results/. CUDA: unmeasured, by design alone.
PREFERENCE = {
    ("cpu", "sinkhorn"): ("native", "reference"),
    ("cpu", "cross_entropy"): ("native", "reference"),
    ("cpu", "linear_cross_entropy"): ("native", "reference"),
    ("cpu", "prior"): ("native", "reference"),
    ("cpu", "covariance"): ("native", "reference"),
    ("cpu", "contrastive"): ("native", "reference"),
    ("cpu", "uniformity"): ("native", "reference"),
    ("cpu", "transport"): ("native", "reference"),
    ("cpu", "wasserstein"): ("native", "reference"),
    ("cpu", "cosine"): ("native", "reference"),
    ("cuda", "sinkhorn"): ("native", "triton", "reference"),
    ("cuda", "cross_entropy"): ("native", "triton", "reference"),
    ("cuda", "linear_cross_entropy"): ("triton", "native", "reference"),
    ("cuda", "prior"): ("triton", "native", "reference"),
    ("cuda", "covariance"): ("native", "triton", "reference"),
    ("cuda", "contrastive"): ("triton", "native", "reference"),
    ("cuda", "uniformity"): ("triton", "reference"),
    ("cuda", "transport"): ("triton", "reference"),
    ("cuda", "wasserstein"): ("native", "triton", "reference"),
    ("cuda", "cosine"): ("reference",),
}
_HALF_AND_SINGLE = (torch.float32, torch.bfloat16, torch.float16)

_choice = "auto"
_selected: dict[tuple[str, str, torch.dtype], str] = {}
_trace: list[tuple[str, str]] | None = None


class set_backend:
    """Choose "auto", "native", "triton" or "reference"; in a `with`, until the block ends."""

    def __init__(self, choice: str):
        self._previous = _choice
        _set(choice)

    def __enter__(self) -> None:
        return None

    def __exit__(self, *exception: object) -> None:
        _set(self._previous)


def get_backend() -> str:
    """The present choice, "auto" included."""
    return _choice


def select(stem: str, device: torch.device, dtype: torch.dtype) -> str:
    """The name of the backend that runs `stem` on such tensors."""
    key = (stem, device.type, dtype)
    name = _selected.get(key)
    if name is None:
        name = _selected[key] = _select(stem, device.type, dtype)
    return name


def implementation(name: str, stem: str) -> ModuleType:
    """The module of backend `name` that implements `stem`."""
    if _trace is not None:
        _trace.append((stem, name))
    return _import(name, stem)


@contextlib.contextmanager
def trace() -> Iterator[list[tuple[str, str]]]:
    """Collect the (stem, backend) pairs that run inside the block."""
    global _trace
    outer, _trace = _trace, []
    try:
        yield _trace
    finally:
        _trace = outer


def why_not(name: str, device_type: str, dtype: torch.dtype) -> str | None:
    """Why backend `name` cannot take such tensors; None when it can."""
    if name == "reference":
        return None
    if device_type not in ("cpu", "cuda"):
        return f"backend {name!r} runs on cpu and cuda tensors, not on {device_type}"
    if device_type == "cuda" and dtype is torch.float64:
        return "float64 on a GPU goes to the reference"
    if dtype is not torch.float64 and dtype not in _HALF_AND_SINGLE:
        return f"backend {name!r} takes float64, float32, bfloat16 and float16, not {dtype}"
    if name == "native":
        from . import native

        return native.why_not(device_type)
    return _why_not_triton(device_type, dtype)


def _why_not_triton(device_type: str, dtype: torch.dtype) -> str | None:
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device_type == "cpu" and not interpreted:
        return "Triton runs on cuda tensors (on cpu tensors only with TRITON_INTERPRET=1)"
    if dtype is torch.float64:
        return "the Triton kernels take float32, bfloat16 and float16"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install triton"
    return None


def _select(stem: str, device_type: str, dtype: torch.dtype) -> str:
    if _choice != "auto":
        reason = why_not(_choice, device_type, dtype)
        order = PREFERENCE.get((device_type, stem), CHOICES)
        if device_type == "cuda" and _choice not in ("reference", *order):
            reason = f"{stem} has no kernels in CUDA C++, but in Triton"
        if reason is not None:
            raise RuntimeError(
                f"backend {_choice!r} cannot run {stem} on {device_type} {dtype}: {reason}. "
                'Call ssl_fast.set_backend("auto") to let ssl_fast choose.'
            )
        return _choice
    order = PREFERENCE.get((device_type, stem), ("reference",))
    return next(name for name in order if why_not(name, device_type, dtype) is None)


# torch.compile calls it instead of tracing the imports in it: torch.compiler.assume_constant_result
# sets the same, but imports dynamo, which takes a second.
_select._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _import(name: str, stem: str) -> ModuleType:
    package = "ssl_fast.triton_kernels" if name == "triton" else f"ssl_fast.{name}"
    return importlib.import_module(f"{package}.{stem}")


def _set(choice: str) -> None:
    global _choice
    if choice not in CHOICES:
        raise ValueError(f"backend {choice!r} is unknown: choose one of {', '.join(CHOICES)}")
    _choice = choice
    _selected.clear()


_set(os.environ.get("SSL_FAST_BACKEND", "auto"))
