"""What the driver knows of a method."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..errors import UsageError
from ..heads import Prototypes
from ..schedules import Shape, anneal

Encodings = Callable[[nn.Module], Tensor]  # network -> its output for every training image, (M, D)


class Batch(NamedTuple):
    """One step's views, and where in the training it stands."""

    views: list[Tensor]  # as the method declares them, (N, C, H, W) each
    ids: Tensor  # (N,) which training images these are
    step: int = 0
    steps: int = 1  # of the whole training
    epochs: int = 1
    world: int = 1  # processes that share the batch
    rank: int = 0  # this one: it has every world-th image

    def uniform(self, numbers: int) -> Tensor:  # (N, numbers), on the CPU
        """Numbers for each image, those that one process with the whole batch would draw."""
        whole = torch.rand(self.world * len(self.ids), numbers)
        return whole[self.rank :: self.world]

    @property
    def progress(self) -> float:
        """From 0 to 1."""
        return self.step / self.steps

    @property
    def epoch(self) -> int:
        """From 0."""
        return self.step * self.epochs // self.steps


class Output(NamedTuple):
    loss: Tensor
    projections: Sequence[Tensor]  # online, of the first two views, for `--uniformity`
    logs: dict[str, Tensor | float] = {}  # noqa: RUF012  curves beside the loss


class Method(nn.Module):
    """Networks and loss of one method, built around an encoder."""

    paper: ClassVar[str]
    equation: ClassVar[str]
    loss_class: ClassVar[str]  # its name in ssl_fast.losses; the controls have torch's
    criterion: Any
    online: Any  # networks that the optimiser trains, by position
    views: Sequence[str] = ("strong", "strong")  # names of the source's views, in `loss`'s order
    recipe: ClassVar[dict[str, Any]] = {}  # TrainOptions of the source's small-image recipe

    def loss(self, batch: Batch) -> Output:
        raise NotImplementedError

    def evaluated(self) -> tuple[nn.Module, nn.Module]:
        """Encoder (images -> encodings) and projector (encodings -> embeddings) to be measured."""
        raise NotImplementedError

    def centres(self) -> Tensor | None:
        """(K, D): prototypes on which embeddings lie, the momentum network's where there are two.

        None where there are none.
        """
        found = [module for module in self.modules() if isinstance(module, Prototypes)]
        return found[-1]() if found else None

    def start_epoch(self, epoch: int, encodings: Encodings) -> None:
        """Before each epoch; `encodings` runs a network over all un-augmented training images."""

    def before_update(self, step: int) -> None:
        """Between backward and the optimiser: where gradients are dropped."""

    def check(self, batch_size: int, images: int) -> None:
        """Raises ValueError for a batch or number of training images that the loss cannot take."""
        if batch_size < 2:
            raise ValueError(f"at least 2 images a step are needed, got batch_size {batch_size}")

    def undecayed(self) -> Sequence[nn.Parameter]:
        """Parameters that take no weight decay, whatever the options."""
        return ()

    def use_group(self, group: Any) -> None:
        """The processes that share the batch; called before training where there are several."""
        for module in self.modules():
            if hasattr(module, "group"):
                module.group = group


class MomentumNetwork(AveragedModel):
    """Exponential average of a network; the decay goes from `start` to `end`.

    Batch-norm statistics are averaged too, and updated by this network's own forward passes.
    Methods update it before its forward pass, which is after the step before as published code
    has it; the schedule is that step's.
    """

    module: Any
    held = False  # while the gradients of a step still gather

    def __init__(
        self, network: nn.Module, start: float, end: float = 1.0, shape: Shape = "cosine"
    ) -> None:
        for value in (start, end):
            if not 0 <= value <= 1:
                raise UsageError(f"a momentum must lie between 0 and 1, got {value}")
        super().__init__(network, use_buffers=True)
        self.start, self.end, self.shape = start, end, shape
        self.requires_grad_(False)

    def update(self, network: nn.Module, progress: float) -> None:
        if self.held:
            return
        decay = anneal(self.start, self.end, progress, self.shape)
        self.multi_avg_fn = get_ema_multi_avg_fn(decay)
        self.update_parameters(network)


def by_size(network: Callable[[Tensor], Tensor], views: Sequence[Tensor]) -> list[Tensor]:
    """The network's output for every view; neighbours of one size go through it together."""
    out: list[Tensor] = []
    while len(out) < len(views):
        rest = views[len(out) :]
        same = next((i for i, v in enumerate(rest) if v.shape != rest[0].shape), len(rest))
        out += network(torch.cat(list(rest[:same]))).chunk(same)
    return out
