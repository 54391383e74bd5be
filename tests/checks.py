"""What numeric tests need: inputs, layouts, the two-times-native oracle, an allocation watch."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# Of the largest entry, so that the native computation's luck does not decide; in float64 it is
# the oracle itself.
FLOOR = {torch.float32: 8 * torch.finfo(torch.float32).eps, torch.float64: 1e-12}
REDUCTIONS = ("mean", "sum", "none")


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Standard normal numbers, the same on every machine: drawn in float64, then rounded."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)


def unit(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Rows of unit norm."""
    rows = normal(*shape, dtype=torch.float64, seed=seed)
    return torch.nn.functional.normalize(rows, dim=-1).to(dtype)


def probabilities(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return normal(*shape, dtype=torch.float64, seed=seed).mul(2).softmax(-1).to(dtype)


# Each gives equal values in another memory layout; the gaps hold NaN, so that reading one shows.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "every other row": lambda t: _inside(t, (2 * t.shape[0], t.shape[1]), lambda b: b[::2]),
    "inner columns": lambda t: _inside(t, (t.shape[0], t.shape[1] + 4), lambda b: b[:, 3:-1]),
    "every other column": lambda t: _inside(t, (t.shape[0], 2 * t.shape[1]), lambda b: b[:, 1::2]),
    "transposed": lambda t: t.T.contiguous().T,
}


def _inside(values: Tensor, shape: tuple[int, int], view: Callable) -> Tensor:
    base = torch.full(shape, float("nan"), dtype=values.dtype)
    view(base).copy_(values)
    return view(base)


def value_and_grads(
    function: Callable, inputs: Sequence[Tensor], wrt: int = 0, upstream: Tensor | None = None
) -> list[Tensor]:
    """function(*inputs), and its gradients for the first `wrt` inputs, layouts untouched."""
    inputs = [x.detach().requires_grad_(i < wrt) for i, x in enumerate(inputs)]
    value = function(*inputs)
    if not wrt:
        return [value]
    d_value = torch.ones_like(value) if upstream is None else upstream.to(value.dtype)
    return [value.detach(), *torch.autograd.grad(value, inputs[:wrt], d_value)]


def error(actual: Tensor, exact: Tensor) -> float:
    """Largest absolute error."""
    return float((actual.double() - exact.double()).abs().max())


def assert_right(
    ours: Callable,
    formula: Callable,
    inputs: Sequence[Tensor],
    wrt: int = 0,
    upstream: Tensor | None = None,
) -> None:
    """Our value and gradients err at most twice as much as the formula does in float32.

    Errors are largest ones, against the formula in float64, plus a rounding floor: some ulps of
    the largest entry. Half inputs are measured against the formula on their float32 copies, which
    is harder than on themselves.
    """
    actual = value_and_grads(ours, inputs, wrt, upstream)
    exact = value_and_grads(formula, [x.double() for x in inputs], wrt, upstream)
    dtype = inputs[0].dtype
    wide = torch.promote_types(dtype, torch.float32)
    native = value_and_grads(formula, [x.to(wide) for x in inputs], wrt, upstream)
    names = ["value", *(f"gradient {i}" for i in range(wrt))]
    for i, (name, a, n, e) in enumerate(zip(names, actual, native, exact, strict=True)):
        assert a.dtype == (inputs[i - 1].dtype if i else wide), name
        assert a.shape == e.shape, name
        assert bool(a.isfinite().all()), f"{name} is not finite"
        floor = FLOOR[wide] + (torch.finfo(a.dtype).eps if a.dtype != wide else 0)
        allowed = 2 * error(n, e) + floor * float(e.abs().max())
        assert error(a, e) <= allowed, f"{name}: error {error(a, e):.3g}, allowed {allowed:.3g}"


def assert_relative(
    actual: Tensor, exact: Tensor, tolerance: float | Tensor, tiny: float = 1e-30
) -> None:
    """Every entry within `tolerance` of its exact value, relatively; below `tiny`, absolutely."""
    excess = (actual.double() - exact).abs() - tolerance * exact.abs() - tiny
    assert bool(actual.isfinite().all())
    worst = int(excess.argmax())
    assert excess.flatten()[worst] <= 0, (
        f"{actual.flatten()[worst]:.9g}, exactly {exact.flatten()[worst]:.9g}"
    )


def spread(*lists: Sequence) -> list[tuple]:
    """All pairs of the first two lists; the others take turns along them."""
    first, second, *rest = lists
    return [
        (a, b, *(other[(i + j) % len(other)] for other in rest))
        for i, a in enumerate(first)
        for j, b in enumerate(second)
    ]


def gradcheck(function: Callable, *inputs: Tensor) -> None:
    """torch.autograd.gradcheck with float64 copies of the inputs."""
    copies = [x.detach().double().clone().requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(function, copies)


def opcheck(name: str, *args: Any) -> None:
    """torch.library.opcheck: schema, fake tensors, autograd registration, AOT dispatch."""
    torch.library.opcheck(getattr(torch.ops.ssl_fast, name).default, args)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit, NaN included."""
    view = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.dtype == b.dtype and torch.equal(a.view(view), b.view(view))


class Allocations(TorchDispatchMode):
    """Watches what tensor operations allocate inside the block; views of arguments do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[tuple[str, torch.Size, torch.dtype]] = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = op(*args, **(kwargs or {}))
        given = {_address(x) for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)}
        for x in tree_flatten(out)[0]:
            if isinstance(x, Tensor) and _address(x) not in given:
                self.results.append((str(op), x.shape, x.dtype))
        return out

    def largest(self) -> int:
        """Elements of the largest result."""
        return max(shape.numel() for _, shape, _ in self.results)


def _address(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


class Saved(torch.autograd.graph.saved_tensors_hooks):
    """Bytes of the storages that autograd keeps inside the block, beside those of `given`."""

    def __init__(self, *given: Tensor) -> None:
        self._given = {_address(x) for x in given}
        self._kept: dict[int, int] = {}
        super().__init__(self._pack, lambda x: x)

    def __enter__(self) -> "Saved":
        super().__enter__()
        return self

    def _pack(self, x: Tensor) -> Tensor:
        if _address(x) not in self._given:
            self._kept[_address(x)] = x.untyped_storage().nbytes()
        return x

    def nbytes(self) -> int:
        return sum(self._kept.values())
