"""What is timed: a Problem is an operation, a Case one size of it with the speed it must reach."""

import dataclasses
import pkgutil
from collections.abc import Callable, Collection

import torch
from torch import Tensor

FORMULA = ("eager", "compile")
LIGHTLY = ("lightly", "lightly compiled")


class Skip(Exception):
    """A rival that is not to be had here; the message says why."""


@dataclasses.dataclass(frozen=True)
class Floor:
    """The least work: bytes that any implementation moves, or products (m, k, n) that it forms.

    Its time is measured in the same rounds as the contenders: a copy, or the library's product.
    """

    label: str
    forward: float | tuple[tuple[int, int, int], ...]
    backward: float | tuple[tuple[int, int, int], ...] = 0.0


def no_floor(*_: Tensor) -> Floor:
    return Floor("-", (), ())


@dataclasses.dataclass(frozen=True)
class Bar:
    """Ours must be `times` faster than `against`.

    That is "eager", the faster of eager and compile, or "Lightly": its class, eager or compiled,
    the faster of both, or the formula where Lightly is not installed; the formula must be beaten
    besides.
    """

    times: float
    against: str = "eager or compile"

    def rivals(self, there: Collection[str]) -> list[str]:
        """The contenders that it names, of those that are there."""
        names = {"eager": ("eager",), "Lightly": LIGHTLY}.get(self.against, FORMULA)
        return [name for name in names if name in there] or [n for n in FORMULA if n in there]

    def __str__(self) -> str:
        return f">= {self.times:g} x {self.against}"


@dataclasses.dataclass(frozen=True)
class Limit:
    """Ours must take at most `times` the floor plus `plus_ms`."""

    times: float
    plus_ms: float = 0.0

    def __str__(self) -> str:
        plus = f" + {self.plus_ms * 1e3:g} us" if self.plus_ms else ""
        return f"<= {self.times:.3g} x floor{plus}"


@dataclasses.dataclass(frozen=True)
class Memory:
    """Ours must stay below `size` bytes in what it "kept" for backward, or at its "peak"."""

    label: str
    kind: str
    size: int

    def __str__(self) -> str:
        return f"{self.label}: {self.kind} < {self.size / 1e6:.3g} MB"


@dataclasses.dataclass(frozen=True)
class Problem:
    """One operation: its inputs, the formula that people write today, our call, and the floor."""

    stem: str
    name: str
    inputs: Callable[..., list[Tensor]]  # (shape, dtype, device) -> arguments of eager and ours
    eager: Callable[..., Tensor]  # also run in float64: the result that all must reproduce
    ours: Callable[..., Tensor]
    floor: Callable[..., Floor]  # of the arguments
    differentiable: tuple[int, ...] = ()  # arguments that get gradients
    memory: Callable[..., Memory] | None = None  # of the arguments
    rivals: tuple[tuple[str, Callable[[], Callable[..., Tensor]]], ...] = ()  # loaders may Skip


@dataclasses.dataclass(frozen=True)
class Case:
    problem: Problem
    shape: tuple[int, ...]
    dtype: str = "float32"
    device: str = "cpu"
    bar: Bar | None = None
    limit: Limit | None = None

    @property
    def size(self) -> str:
        return "x".join(map(str, self.shape))

    def __str__(self) -> str:
        return f"{self.problem.name} {self.size} {self.dtype} {self.device}"

    def arguments(self, seed: int = 0) -> list[Tensor]:
        torch.manual_seed(seed)
        dtype = getattr(torch, self.dtype)
        return self.problem.inputs(self.shape, dtype, torch.device(self.device))

    def as_dtype(self, dtype: str) -> "Case":
        """The same size in another type; the bars were set for the listed one."""
        if dtype == self.dtype:
            return self
        return dataclasses.replace(self, dtype=dtype, bar=None, limit=None)


def lightly(
    name: str, call: Callable[..., Callable] = lambda loss: loss, **options
) -> Callable[[], Callable[..., Tensor]]:
    """A rival's loader: the class `name` of lightly.loss, as `call` makes it take our arguments."""

    def load() -> Callable[..., Tensor]:
        try:
            cls = pkgutil.resolve_name(f"lightly.loss.{name}")
        except ImportError:
            raise Skip("lightly is not installed: pip install lightly") from None
        return call(cls(**options))

    return load


def unit(rows: int, width: int, device: torch.device) -> Tensor:
    """Random rows of unit norm, as normalised embeddings and prototypes are."""
    return torch.nn.functional.normalize(torch.randn(rows, width, device=device), dim=1)


def full(x: Tensor) -> Tensor:
    """Half types go to float32 before exp and log, as careful training code has it."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def nbytes(*tensors: Tensor) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)
