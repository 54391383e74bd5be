"""Argument checks: the one place. Every message says what came, what was expected, what to do."""

import math
import numbers
import sys
from typing import Any

import torch
from torch import Tensor
from torch.distributed.distributed_c10d import _resolve_process_group

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def matrix(name: str, value: Any) -> None:
    """`value` is a plain floating-point tensor (N, K) with N, K >= 1."""
    _filled(name, value, 2, "matrix (rows, columns)")


def batch(name: str, value: Any) -> None:
    """`value` is a plain floating-point tensor (B, K, D), none of them 0."""
    _filled(name, value, 3, "batch of matrices (B, K, D)")


def _filled(name: str, value: Any, dimensions: int, what: str) -> None:
    if type(value) is not Tensor or value.layout is not torch.strided or value.is_nested:
        _plain(name, value)
    if value.dtype not in _FLOATS:
        raise TypeError(
            f"{name} must be float64, float32, bfloat16 or float16, got {value.dtype}: "
            f"call {name}.float()"
        )
    if value.dim() != dimensions or value.numel() == 0:
        raise ValueError(f"{name} must be a non-empty {what}, got shape {tuple(value.shape)}")


def detached(name: str, value: Any) -> Tensor:
    """The constant `value`, a matrix."""
    matrix(name, value)
    return value.detach()


def tensor(
    name: str, value: Any, shape: tuple[int, ...], other_name: str, expected: torch.device
) -> None:
    """`value` is a plain floating-point tensor of exactly `shape`, on the device of the other."""
    _plain(name, value)
    if value.dtype not in _FLOATS:
        raise TypeError(f"{name} must be floating-point, got {value.dtype}")
    if tuple(value.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}")
    device(name, value, other_name, expected)


def _plain(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    dtensor = sys.modules.get("torch.distributed.tensor")
    if dtensor is not None and isinstance(value, dtensor.DTensor):
        raise TypeError(
            f"{name} is a DTensor; ssl_fast takes plain tensors: pass {name}.to_local() or "
            f"{name}.full_tensor(), and the process group as group="
        )
    if value.layout is not torch.strided or value.is_nested:
        kind = "a nested tensor" if value.is_nested else f"layout {value.layout}"
        raise TypeError(f"{name} must be a dense tensor, got {kind}")


def same(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Both tensors live on one device and have one type."""
    device(name, value, other_name, other.device)
    if value.dtype != other.dtype:
        raise TypeError(
            f"{name} is {value.dtype} and {other_name} is {other.dtype}: convert one of them, "
            f"as {name}.to({other_name}.dtype) does"
        )


def device(name: str, value: Tensor, other_name: str, expected: torch.device) -> None:
    if value.device != expected:
        raise ValueError(
            f"{name} is on {value.device}, {other_name} on {expected}: move one of them"
        )


def factors(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Two matrices (N, D) and (K, D) whose product value @ other.T is meant."""
    matrix(name, value)
    matrix(other_name, other)
    same(name, value, other_name, other)
    if value.shape[1] != other.shape[1]:
        raise ValueError(
            f"{name} and {other_name} must have one width D, got {name} {tuple(value.shape)} "
            f"and {other_name} {tuple(other.shape)}"
        )


def constant(name: str, value: Tensor) -> None:
    """`value` carries no gradient: none would reach it."""
    if value.requires_grad:
        raise ValueError(f"{name} requires grad, but is a constant here: pass {name}.detach()")


def positive(name: str, value: Any) -> float:
    """A finite number > 0, Python's or NumPy's."""
    if isinstance(value, Tensor):
        raise TypeError(
            f"{name} must be a Python float, got a tensor: pass {name}.item(), or apply a "
            "learnable temperature to the input instead (x / temperature) and leave it at 1"
        )
    real = _real(name, value)
    if not 1e-300 < real < math.inf:  # 1 / value must be finite too
        raise ValueError(f"{name} must be finite and > 0, got {value}")
    return real


def at_least_zero(name: str, value: Any) -> float:
    """A finite number >= 0."""
    real = _real(name, value)
    if not 0 <= real < math.inf:
        raise ValueError(f"{name} must be finite and >= 0, got {value}")
    return real


def share(name: str, value: Any, *, whole: bool = False) -> float:
    """A number in [0, 1), or in [0, 1] where the `whole` is one."""
    real = _real(name, value)
    if not 0 <= real <= 1 or (real == 1 and not whole):
        end = "at most 1" if whole else "less than 1"
        raise ValueError(f"{name} must be at least 0 and {end}, got {value}")
    return real


def _real(name: str, value: Any) -> float:
    if type(value) is float:  # the abstract class takes a microsecond
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a Python float, got {type(value).__name__}")
    return float(value)


def count(name: str, value: Any) -> int:
    """An integer >= 1."""
    if type(value) is int and value >= 1:
        return value
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be an integer >= 1, got {value!r}")
    return int(value)


def count_or_zero(name: str, value: Any) -> int:
    """An integer >= 0."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name} must be an integer >= 0, got {value!r}")
    return int(value)


def choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def prior(value: Any, num_prototypes: int, scores_device: torch.device) -> Tensor:
    """(K,), non-negative, sums to 1 within 1e-3. Values are read on CPU tensors only: no sync."""
    tensor("prior", value, (num_prototypes,), "the scores", scores_device)
    value = value.detach()
    if scores_device.type == "cpu" and not torch.compiler.is_compiling():
        smallest, total = float(value.min()), float(value.double().sum())
        if not smallest >= 0:
            raise ValueError(f"prior must be non-negative, its smallest entry is {smallest}")
        if not abs(total - 1) <= 1e-3:
            raise ValueError(f"prior must sum to 1, got {total:g}: pass prior / prior.sum()")
    return value


def index(
    name: str, value: Any, size: int, other_name: str, other: Tensor, rows: int | None = None
) -> None:
    """(rows,) long, of any length for None, in [0, size); read on CPU tensors only: no sync."""
    if not isinstance(value, Tensor) or value.dtype != torch.int64:
        came = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a tensor of torch.int64, got {came}: call {name}.long()")
    _plain(name, value)
    if value.dim() != 1 or value.numel() == 0 or rows not in (None, len(value)):
        expected = "(M,), M >= 1" if rows is None else f"({rows},)"
        raise ValueError(f"{name} must have shape {expected}, got {tuple(value.shape)}")
    device(name, value, other_name, other.device)
    if value.device.type == "cpu" and not torch.compiler.is_compiling():
        smallest, largest = int(value.min()), int(value.max())
        if smallest < 0 or largest >= size:
            raise ValueError(
                f"{name} must lie in [0, {size}), its entries reach from {smallest} to {largest}"
            )


def all_positive(name: str, value: Tensor) -> None:
    """Every entry is finite and > 0; read on CPU tensors only: no sync."""
    if value.device.type == "cpu" and not torch.compiler.is_compiling():
        smallest, largest = float(value.min()), float(value.max())
        if not 0 < smallest <= largest < math.inf:
            raise ValueError(
                f"{name} must be finite and > 0, its entries reach from {smallest:g} to "
                f"{largest:g}: clamp it from below"
            )


def rows_contiguous(value: Tensor) -> Tensor:
    """`value`, copied only if its columns are not adjacent in memory."""
    return value if value.stride()[1] == 1 or value.shape[1] == 1 else value.contiguous()


def group_name(group: Any) -> str:
    """The name under which `group` travels through operators; "" for this process alone."""
    if group is None:
        return ""
    if not torch.distributed.is_initialized():
        raise ValueError(
            "group= needs torch.distributed: call torch.distributed.init_process_group first, "
            "or pass group=None for this process alone"
        )
    if isinstance(group, str):
        _known(group)
        return group
    if not hasattr(group, "group_name"):
        raise TypeError(
            "group must be None, a ProcessGroup such as torch.distributed.group.WORLD, or its "
            f"name, got {type(group).__name__}"
        )
    return group.group_name


def _known(name: str) -> None:
    if torch.compiler.is_compiling():
        return
    try:
        _resolve_process_group(name)  # type: ignore[arg-type]  # torch 2.15 names the type
    except RuntimeError as error:
        raise ValueError(
            f"group must be the name of a process group of this process, got {name!r}: pass the "
            "group itself, or its .group_name"
        ) from error


def by_name(group: Any) -> Any:
    """A group as modules hold it: its name, which copies and pickles, or None."""
    return getattr(group, "group_name", group)


def autocast(*operands: Any) -> tuple:
    """Operands of a product, in autocast's type where it is enabled: as torch.matmul takes them."""
    if not torch._C._is_any_autocast_enabled():
        return operands
    return tuple(_autocast(value) for value in operands)


def _autocast(value: Any) -> Any:
    if not isinstance(value, Tensor) or value.dtype == torch.float64:
        return value
    kind = value.device.type
    enabled = torch.is_autocast_enabled(kind)
    return value.to(torch.get_autocast_dtype(kind)) if enabled else value
