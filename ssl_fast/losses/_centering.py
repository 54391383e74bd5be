"""What DINO's and iBOT's teachers share: a centre, a temperature schedule, or Sinkhorn-Knopp."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..functional import Assignment, _check
from ..functional._teacher import mean_scores, sorted_prior
from ._prior import ORDERS, Prior

_CENTERING = ("mean", "sinkhorn")


class CenteredLoss(torch.nn.Module):
    """Targets softmax((s - center) / T) or Sinkhorn(s / T), and the centre's moving average.

    The arguments are those of `DINOLoss` and `IBOTLoss`.
    """

    center: Tensor

    def __init__(
        self,
        num_prototypes: int = 65536,
        temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        warmup_teacher_temperature: float = 0.04,
        warmup_epochs: int = 0,
        center_momentum: float = 0.9,
        centering: str = "mean",
        iterations: int = 3,
        prior: Tensor | str | None = None,
        exponent: float = 0.25,
        prior_order: str = "fixed",
        group: Any = None,
    ):
        super().__init__()
        self.num_prototypes = _check.count("num_prototypes", num_prototypes)
        self.temperature = _check.positive("temperature", temperature)
        self.teacher_temperature = _check.positive("teacher_temperature", teacher_temperature)
        self.warmup_teacher_temperature = _check.positive(
            "warmup_teacher_temperature", warmup_teacher_temperature
        )
        self.warmup_epochs = _check.count_or_zero("warmup_epochs", warmup_epochs)
        self.center_momentum = _check.share("center_momentum", center_momentum, whole=True)
        _check.choice("centering", centering, _CENTERING)
        _check.choice("prior_order", prior_order, ORDERS)
        self.centering, self.prior_order = centering, prior_order
        self.iterations = _check.count("iterations", iterations)
        self.prior = Prior(prior, exponent)
        if self.prior.name != "uniform" and centering == "mean":
            raise ValueError('prior is matched by Sinkhorn alone: pass centering="sinkhorn" too')
        self.group = _check.by_name(group)
        self.register_buffer("center", torch.zeros(1, num_prototypes))

    def temperature_at(self, epoch: int | None) -> float:
        """The teacher's temperature: linear over the warm-up epochs, then constant."""
        last = self.warmup_epochs - 1
        if epoch is not None and epoch < 0:
            raise ValueError(f"epoch counts from 0, got {epoch}")
        if epoch is None or epoch > last:
            return self.teacher_temperature
        start = self.warmup_teacher_temperature
        share = epoch / last if last else 0.0
        return start + (self.teacher_temperature - start) * share

    def _targets(
        self, teachers: Sequence[Tensor], prototypes: Tensor | None, temperature: float
    ) -> list[Assignment]:
        """One assignment a crop, from the centre before this batch; then the centre moves."""
        teachers = [t.detach() for t in teachers]
        self._check_prototypes(teachers[0] if prototypes is None else prototypes, prototypes)
        if self.centering == "sinkhorn":
            return self._balanced(teachers, prototypes, temperature)
        center = self.center[0]
        targets = [
            Assignment.softmax(_scores(t, prototypes), temperature=temperature, center=center)
            for t in teachers
        ]
        if self.training:
            self._update_center(teachers, prototypes)
        return targets

    def _balanced(
        self, teachers: list[Tensor], prototypes: Tensor | None, temperature: float
    ) -> list[Assignment]:
        """One Sinkhorn over all crops together, as DINOv2 has it."""
        together = teachers[0] if len(teachers) == 1 else torch.cat(teachers)
        scores = _scores(together, prototypes)
        prior = self.prior(self.num_prototypes, together.device)
        if prior is not None and self.prior_order == "sorted":
            prior = sorted_prior(scores, prior, temperature, _check.group_name(self.group))
        balanced = Assignment.sinkhorn(
            scores, epsilon=temperature, iterations=self.iterations, prior=prior, group=self.group
        )
        if len(teachers) == 1:
            return [balanced]
        ends = itertools.accumulate(len(t) for t in teachers)
        return [balanced[end - len(t) : end] for t, end in zip(teachers, ends, strict=True)]

    @torch.no_grad()
    def _update_center(self, teachers: list[Tensor], prototypes: Tensor | None) -> None:
        batch = mean_scores(teachers, prototypes, _check.group_name(self.group))
        self.center.mul_(self.center_momentum).add_(batch * (1 - self.center_momentum))

    def _check_prototypes(self, scored: Tensor, prototypes: Tensor | None) -> None:
        name = "teacher logits" if prototypes is None else "teacher prototypes"
        _check.matrix(name, scored)
        found = scored.shape[1] if prototypes is None else scored.shape[0]
        if found != self.num_prototypes:
            raise ValueError(
                f"{type(self).__name__} was built for num_prototypes={self.num_prototypes}, but "
                f"the {name} {tuple(scored.shape)} have {found}"
            )

    def extra_repr(self) -> str:
        return (
            f"num_prototypes={self.num_prototypes}, temperature={self.temperature}, "
            f"teacher_temperature={self.teacher_temperature}, "
            f"warmup_teacher_temperature={self.warmup_teacher_temperature}, "
            f"warmup_epochs={self.warmup_epochs}, center_momentum={self.center_momentum}, "
            f"centering={self.centering!r}, iterations={self.iterations}, "
            f"prior_order={self.prior_order!r}"
        )


def crops(name: str, value: Any) -> list[Tensor]:
    """A non-empty list of crops; one tensor of all crops is refused."""
    if isinstance(value, Tensor) or not isinstance(value, Sequence):
        raise TypeError(
            f"{name} must be a list of crops, each (N, D), got {type(value).__name__}: "
            f"write [crop0, crop1], or {name}.chunk(number of crops)"
        )
    if not value:
        raise ValueError(f"{name} must hold at least one crop, got an empty list")
    for i, crop in enumerate(value):
        _check.matrix(f"{name}[{i}]", crop)
    return list(value)


def of_teacher(prototypes: Tensor | None, own: Tensor | None) -> Tensor | None:
    """The teacher's own prototypes, else the student's."""
    if prototypes is None and own is not None:
        raise ValueError(
            "teacher_prototypes came without prototypes: pass both with embeddings, and neither "
            "with logits"
        )
    return prototypes if own is None else own


def _scores(z: Tensor, prototypes: Tensor | None) -> Any:
    return z if prototypes is None else (z, prototypes)
