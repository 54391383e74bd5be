"""What the classes share: Lightly's check at construction, its process group, its result type."""

import importlib.metadata
import sys
import warnings
from typing import Any

import torch
from torch import Tensor


def check_gather(name: str, wanted: bool) -> None:
    """As Lightly: gathering needs a torch with torch.distributed."""
    if wanted and not torch.distributed.is_available():
        raise ValueError(
            f"{name} is True but torch.distributed is not available. Please set {name}=False or "
            "install a torch version with distributed support."
        )


def world(wanted: bool = True) -> Any:
    """The default process group if `wanted` and there are several processes, else None."""
    distributed = torch.distributed
    if not wanted or not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed.group.WORLD if distributed.get_world_size() > 1 else None


def as_lightly(loss: Tensor, dtype: torch.dtype) -> Tensor:
    """`loss` in the type that Lightly returns: the inputs', under autocast float32."""
    if loss.dtype == dtype or torch._C._is_any_autocast_enabled():
        return loss
    return loss.to(dtype)


def version() -> tuple[int, int] | None:
    """(major, minor) of the installed Lightly, None without one."""
    try:
        major, minor, *_ = importlib.metadata.version("lightly").split(".")
    except importlib.metadata.PackageNotFoundError:
        return None
    return int(major), int(minor)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """A warning that points at the first line outside this package."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level - 1)


_PACKAGE = __package__
