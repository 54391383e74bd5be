"""Launches that are recorded instead of made, and compiled for a GPU that is not here."""

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from triton_harness import STEMS, kernels


class Launch(NamedTuple):
    """One specialisation of one kernel, as Triton's own launcher would derive it."""

    kernel: Any
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    divisible: tuple[str, ...]
    options: tuple[tuple[str, Any], ...]

    def compile(self, capability: int) -> Any:
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource, compile

        names = [name for name, _ in self.signature]
        source = ASTSource(
            self.kernel,
            signature=dict(self.signature),
            constexprs=dict(self.constants),
            attrs={(names.index(name),): [["tt.divisibility", 16]] for name in self.divisible},
        )
        target = GPUTarget("cuda", capability, 32)
        return compile(source, target=target, options=dict(self.options))


@contextlib.contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Collect launches instead of making them: tensors may live on the meta device."""
    launches: list[Launch] = []

    def record(kernel, grid, like, *args, **options):
        launches.append(_specialise(kernel, args, {**options, "enable_fp_fusion": True}))

    with pytest.MonkeyPatch.context() as patch:
        for stem in STEMS:
            patch.setattr(kernels(stem), "launch", record)
        yield launches


def _specialise(kernel: Any, args: tuple, options: dict) -> Launch:
    named = [
        inspect.Parameter(p.name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for p in kernel.params
    ]
    compiler = {"num_warps", "num_stages", "enable_fp_fusion"}
    given = {name: value for name, value in options.items() if name not in compiler}
    values = inspect.Signature(named).bind(*args, **given).arguments
    signature = {p.name: _type(p, values[p.name]) for p in kernel.params}
    constants = {n: v for n, v in values.items() if signature[n] == "constexpr"}
    divisible = [n for n, v in values.items() if n not in constants and _divisible(v)]
    return Launch(
        kernel, tuple(signature.items()), tuple(constants.items()), tuple(divisible),
        tuple((name, value) for name, value in options.items() if name in compiler),
    )  # fmt: skip


def _divisible(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0)


def _type(parameter: Any, value: Any) -> str:
    # An annotated type is kept whatever the value: None would fail at launch.
    assert value is not None or not parameter.annotation_type, parameter.name
    if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
        return "constexpr"
    if isinstance(value, Tensor):
        names = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16"}
        names[torch.int64] = "i64"
        return "*" + names.get(value.dtype, "fp16")
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    return parameter.annotation_type or "fp32"
