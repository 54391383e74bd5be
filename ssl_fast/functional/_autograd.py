"""Backward passes in closed form are differentiable once; a second time is refused, never zero."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._operator import is_transformed


class ClosedForm(torch.autograd.Function):
    """Autograd functions with one result, whatever else their backward pass needs. They define:

    run: the `operator` from inputs to the result, and what else `keep` asks for, as a tuple; or
        forward(*inputs), where that is more than one operator of the same arguments.
    keep(ctx, inputs, outputs): saves.
    backward(ctx, d_result): gradients of the first inputs; those of no use may be anything.
    """

    run: Callable
    keep: Callable

    def __init_subclass__(cls) -> None:  # static methods alone: Dynamo takes no class methods
        if "run" in vars(cls):
            cls.forward = staticmethod(cls.run)  # type: ignore[method-assign]

        def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
            ctx.mark_non_differentiable(*[t for t in output[1:] if t is not None])
            ctx.set_materialize_grads(False)
            cls.keep(ctx, inputs, output)

        cls.setup_context = staticmethod(setup_context)  # type: ignore[method-assign]
        if "backward" in vars(cls):
            cls.backward = staticmethod(_once_differentiable(cls.backward))  # type: ignore[method-assign]


def _once_differentiable(backward: Callable) -> Callable:
    """As torch's decorator of that name, but refuses whatever the second derivative is taken by.

    Torch's own looks at the incoming gradient alone: where that is a constant, a gradient penalty
    would silently lose its gradient.
    """

    def needed(ctx: Any, d_result: Tensor | None) -> tuple:
        needs = ctx.needs_input_grad
        gradients = () if d_result is None else backward(ctx, d_result)
        kept = [g if need else None for g, need in zip(gradients, needs, strict=False)]
        return *kept, *[None] * (len(needs) - len(kept))

    def wrapped(ctx: Any, d_result: Tensor | None, *_: Any) -> tuple:
        if not torch.is_grad_enabled():  # no graph asked for
            return needed(ctx, d_result)
        with torch.no_grad():
            gradients = needed(ctx, d_result)
        held = (*ctx.saved_tensors, d_result)
        inputs = [t for t in held if isinstance(t, Tensor) and t.requires_grad]
        present = [g for g in gradients if g is not None]
        refusing = iter(_Refuse.apply(len(inputs), *inputs, *present))
        return tuple(None if g is None else next(refusing) for g in gradients)

    return wrapped


class OfTwo(ClosedForm):
    """Backward has the first two inputs, forward's further results, and the rest as `numbers`."""

    @staticmethod
    def keep(ctx: Any, inputs: tuple, outputs: tuple) -> None:
        ctx.numbers = inputs[2:]
        ctx.save_for_backward(*inputs[:2], *outputs[1:])


class Scaled(ClosedForm):
    """Forward has the gradients of the first inputs after its 0-d result: backward scales them."""

    @staticmethod
    def keep(ctx: Any, inputs: tuple, outputs: tuple) -> None:
        # The inputs for their types, and for a second derivative to be refused.
        ctx.save_for_backward(*inputs[: len(outputs) - 1], *outputs[1:])

    @staticmethod
    def backward(ctx: Any, d_result: Tensor) -> list[Tensor | None]:
        held = ctx.saved_tensors
        inputs, gradients = held[: len(held) // 2], held[len(held) // 2 :]
        return scaled(gradients, d_result, ctx.needs_input_grad, inputs)


def scaled(
    gradients: Sequence[Tensor], by: Tensor, needs: Sequence[bool], inputs: Sequence[Tensor]
) -> list[Tensor | None]:
    """The kept gradients that are needed, times `by`, 0-d, in the inputs' types.

    In place in the last pass over their graph.
    """
    last = _is_last_pass()
    one = last and not by.is_cuda and by.item() == 1

    def multiplied(g: Tensor) -> Tensor:
        if one:
            return g
        return g.mul_(by) if last else g * by

    return [
        multiplied(g).to(x.dtype) if need else None
        for g, need, x in zip(gradients, needs, inputs, strict=False)
    ]


def _is_last_pass() -> bool:
    """Whether the graph is not kept: nobody else holds what it saved, nor will ask for it again."""
    return not (is_transformed() or torch._C._autograd._get_current_graph_task_keep_graph())


def apply(function: Any, *args: Any) -> Tensor:
    """The result of a `ClosedForm`.

    torch.func needs `setup_context`, but eager calls of it inspect signatures for 80 microseconds:
    they go through a twin in the older form, which calls `keep` alone and returns one output.
    """
    if is_transformed():
        return function.apply(*args)[0]
    return _eager_twin(function).apply(*args)


@functools.cache
def _eager_twin(function: Any) -> Any:
    run = function.run.eager if hasattr(function, "run") else function.forward

    def forward(ctx, *args):
        outputs = run(*args)
        function.keep(ctx, args, outputs)
        return outputs[0]

    methods = {"forward": staticmethod(forward), "backward": staticmethod(function.backward)}
    return type(function.__name__, (torch.autograd.Function,), methods)


class _Refuse(torch.autograd.Function):
    """Gradients as they are, with a graph back to the inputs that raises when it is walked."""

    @staticmethod
    def forward(count, *tensors):
        return tuple(t.view_as(t) for t in tensors[count:])

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(
            "ssl_fast losses are differentiable once, their second derivative is not implemented: "
            "drop create_graph=True, or write this loss in plain PyTorch"
        )
