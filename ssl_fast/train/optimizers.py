"""Optimiser and schedules from the options."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from .config import TrainOptions


def build_optimizer(module: nn.Module, o: TrainOptions) -> torch.optim.Optimizer:
    groups = _groups(module.named_parameters(), o)
    if o.optimizer == "sgd":
        return torch.optim.SGD(groups, o.lr, momentum=o.sgd_momentum)
    if o.optimizer == "lars":
        from timm.optim import Lars

        # groups without decay are not scaled by the trust ratio, as published recipes have it
        return Lars(groups, o.lr, momentum=o.sgd_momentum, trust_coeff=o.lars_trust)
    kind = torch.optim.AdamW if o.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, o.lr)


def build_schedule(optimizer: torch.optim.Optimizer, o: TrainOptions, total: int) -> LRScheduler:
    """Linear warm-up, then a cosine down to the floor."""
    warmup = max(1, round(total * o.warmup_epochs / o.epochs))
    parts = [
        LinearLR(optimizer, start_factor=1e-2, total_iters=warmup),
        CosineAnnealingLR(optimizer, max(1, total - warmup), eta_min=o.lr_floor * o.lr),
    ]
    return SequentialLR(optimizer, parts, milestones=[warmup])


def _groups(named: Iterable[tuple[str, nn.Parameter]], o: TrainOptions) -> list[dict]:
    """Parameters with decay; those without: vectors, such as biases and norms, if asked for."""
    trained = [p for _, p in named if p.requires_grad]
    if o.decay_norms:
        return [{"params": trained, "weight_decay": o.weight_decay}]
    matrices = [p for p in trained if p.ndim > 1]
    vectors = [p for p in trained if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": o.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
