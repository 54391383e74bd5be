"""Optimiser and schedules from the options."""

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from .config import TrainOptions
from .methods import Method
from .schedules import anneal

START = 1e-2  # of the peak rate, where the warm-up begins


def build_optimizer(method: Method, o: TrainOptions) -> torch.optim.Optimizer:
    groups = _groups(method, o)
    if o.optimizer == "sgd":
        return torch.optim.SGD(groups, o.lr, momentum=o.sgd_momentum)
    if o.optimizer == "lars":
        from timm.optim import Lars

        # groups without decay are not scaled by the trust ratio, as published recipes have it
        trust, clip = o.lars_trust, o.lars_clip
        return Lars(groups, o.lr, momentum=o.sgd_momentum, trust_coeff=trust, trust_clip=clip)
    kind = torch.optim.AdamW if o.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, o.lr)


def build_schedule(optimizer: torch.optim.Optimizer, o: TrainOptions, total: int) -> LambdaLR:
    """Linear warm-up, then a cosine down to the floor: of every group, as a share of its rate."""
    warmup = max(1, round(total * o.warmup_epochs / o.epochs))

    def share(step: int) -> float:
        if step < warmup:
            return anneal(START, 1.0, step / warmup, "linear")
        return anneal(1.0, o.lr_floor, min(1.0, (step - warmup) / max(1, total - warmup)))

    return LambdaLR(optimizer, share)


def _groups(method: Method, o: TrainOptions) -> list[dict]:
    """Parameters with decay, and those without: vectors, such as biases and norms, if asked for."""
    spared = {id(p) for p in method.undecayed()}
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for p in method.parameters():
        if p.requires_grad:
            with_decay = id(p) not in spared and (o.decay_norms or p.ndim > 1)
            (decayed if with_decay else free).append(p)
    groups = [
        {"params": decayed, "weight_decay": o.weight_decay},
        {"params": free, "weight_decay": 0.0, "lr": o.lr_undecayed or o.lr},
    ]
    return [group for group in groups if group["params"]]
