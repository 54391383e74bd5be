"""What a training costs: seconds in its losses and in its networks, peak memory."""

import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss

from .. import losses
from .tables import Percent, Table

LOSSES = (_Loss, *(getattr(losses, name) for name in losses.__all__))
Mark = Any  # seconds of `time.perf_counter`, or a CUDA event


class Cost(Callback):
    """Forward and backward of every step; the sums are part of the checkpoint.

    A loss's backward lasts from the start of the step's until the last of its inputs has its
    gradient: what was recorded last runs first.
    """

    def __init__(self) -> None:
        self.steps, self.peak = 0, 0
        self.seconds = {"loss": 0.0, "step": 0.0}
        self._spans: list[tuple[str, Mark, Mark]] = []  # not yet in the sums
        self._step = self._loss = self._arrived = self._backward = time.perf_counter()  # type: Mark
        self._cuda = False

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        self._cuda = module.device.type == "cuda"
        for criterion in losses_of(module):
            criterion.register_forward_pre_hook(self._enter, with_kwargs=True)
            criterion.register_forward_hook(self._leave)

    def on_train_batch_start(self, *_: Any) -> None:
        self._step = self._mark()

    def on_before_backward(self, *_: Any) -> None:
        self._backward = self._arrived = self._mark()

    def on_after_backward(self, *_: Any) -> None:
        self._spans += [
            ("loss", self._backward, self._arrived),
            ("step", self._step, self._mark()),
        ]
        self.steps += 1

    def on_train_epoch_end(self, *_: Any) -> None:
        self._add_up()

    def facts(self) -> dict[str, Any]:
        """Seconds of training steps, without data, optimiser and evaluation."""
        loss, step = self.seconds["loss"], self.seconds["step"]
        return {
            "steps": self.steps,
            "loss_seconds": round(loss, 3),
            "network_seconds": round(step - loss, 3),
            "peak_bytes": self.peak,
        }

    def state_dict(self) -> dict[str, Any]:
        self._add_up()
        return {"steps": self.steps, "peak": self.peak, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self.peak, self.seconds = state["steps"], state["peak"], state["seconds"]

    def _enter(self, _: nn.Module, arguments: tuple, options: dict) -> tuple[tuple, dict]:
        arguments, options = apply_to_collection((arguments, options), Tensor, self._watched)
        self._loss = self._mark()
        return arguments, options

    def _leave(self, *_: Any) -> None:
        self._spans.append(("loss", self._loss, self._mark()))

    def _watched(self, x: Tensor) -> Tensor:
        """A view: its gradient is the loss's alone, whatever else reads `x`."""
        if not x.requires_grad:
            return x
        x = x.view_as(x)
        x.register_hook(self._arrive)
        return x

    def _arrive(self, _: Tensor) -> None:
        self._arrived = self._mark()

    def _mark(self) -> Mark:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _add_up(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()
        for part, start, end in self._spans:
            self.seconds[part] += seconds(start, end)
        self._spans.clear()
        self.peak = max(self.peak, peak_bytes(self._cuda))


def losses_of(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost losses inside a module."""
    for child in module.children():
        if isinstance(child, LOSSES):
            yield child
        else:
            yield from losses_of(child)


def seconds(start: Mark, end: Mark) -> float:
    if isinstance(start, float):
        return end - start
    return start.elapsed_time(end) / 1000


def peak_bytes(cuda: bool) -> int:
    """Of PyTorch's allocations on a GPU; of the whole process, data included, on a CPU."""
    if cuda:
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def table(facts: dict[str, Any]) -> Table:
    """Where a run's seconds went."""
    parts = {part: facts[f"{part}_seconds"] for part in ("loss", "network")}
    parts["data, optimiser, evaluation"] = facts["seconds"] - sum(parts.values())
    rows = [[part, took, Percent(took / facts["seconds"])] for part, took in parts.items()]
    title = (
        f"{facts['steps']} steps, losses by {facts['loss_backend']}, forward and backward; "
        f"peak memory {facts['peak_bytes'] / 2**20:.0f} MiB"
    )
    return Table(title, ["part", "seconds", "share"], rows, digits=".1f")
