"""One function, two ways in: called as it is in eager mode, a registered operator when traced."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from ._tiles import product_dtype


def operator(fake: Callable) -> Callable:
    """Register the decorated function as ssl_fast::<name>; `fake` gives its outputs' shapes.

    torch.compile, torch.func and fake tensors see the operator, which returns an empty tensor for
    None. Eager calls run the same lines without the dispatcher's 10 to 60 microseconds.
    """

    def decorate(function: Callable) -> Callable:
        name = f"ssl_fast::{function.__name__}"

        @functools.wraps(function)
        def registrable(*args: Any) -> Any:
            outputs = full_precision(function, args)
            if isinstance(outputs, Tensor):
                return outputs
            return type(outputs)(args[0].new_empty(0) if out is None else out for out in outputs)

        torch.library.custom_op(name, registrable, mutates_args=()).register_fake(fake)
        registered = getattr(torch.ops.ssl_fast, function.__name__).default

        @functools.wraps(function)  # Dynamo counts the parameters that it shows
        def call(*args: Any) -> Any:
            if is_transformed() or isinstance(args[0], FakeTensor):
                return registered(*args)
            return full_precision(function, args)

        def eager(*args: Any) -> Any:
            if isinstance(args[0], FakeTensor):
                return registered(*args)
            return full_precision(function, args)

        call.eager = eager  # type: ignore[attr-defined]  # where the caller has asked `is_transformed`
        return call

    return decorate


def is_transformed() -> bool:
    """Whether torch.compile, export or torch.func watch, which see operators alone."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def fake_gradient(x: Tensor, wanted: bool) -> Tensor:
    """Shape of a gradient in `product_dtype`, or of the empty tensor that stands for None."""
    return x.new_empty(x.shape, dtype=product_dtype(x)) if wanted else x.new_empty(0)


def fake_loss(like: Tensor, *wanted: tuple[Tensor, bool]) -> tuple[Tensor, ...]:
    """Shapes of a loss, 0-d, and of its gradients by tensors, each with whether it is wanted."""
    loss = like.new_empty((), dtype=product_dtype(like))
    return loss, *(fake_gradient(x, want) for x, want in wanted)


def full_precision(function: Callable, args: tuple) -> Any:
    """function(*args) outside autocast: the products in it are float32 on purpose."""
    if not torch._C._is_any_autocast_enabled():
        return function(*args)
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        return function(*args)
