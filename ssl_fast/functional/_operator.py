"""One function, two ways in: called as it is in eager mode, a registered operator when traced."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor


def operator(fake: Callable) -> Callable:
    """Register the decorated function as ssl_fast::<name>; `fake` gives its outputs' shapes.

    torch.compile, torch.func and fake tensors see the operator, which returns an empty tensor for
    None. Eager calls run the same lines without the dispatcher's 10 to 60 microseconds.
    """

    def decorate(function: Callable) -> Callable:
        name = f"ssl_fast::{function.__name__}"

        @functools.wraps(function)
        def without_none(*args: Any) -> Any:
            outputs = function(*args)
            if not isinstance(outputs, tuple):
                return outputs
            return tuple(args[0].new_empty(0) if out is None else out for out in outputs)

        registered = torch.library.custom_op(name, without_none, mutates_args=())
        registered.register_fake(fake)

        def call(tensor: torch.Tensor, *args: Any) -> Any:
            traced = (
                torch.compiler.is_compiling()
                or torch._C._are_functorch_transforms_active()
                or isinstance(tensor, FakeTensor)
            )
            return (registered if traced else function)(tensor, *args)

        call.__doc__ = function.__doc__
        return call

    return decorate
