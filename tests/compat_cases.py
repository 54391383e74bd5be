"""One table of Lightly's classes: options and inputs from which all compat tests are generated."""

import contextlib
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from checks import normal
from compat_inputs import (
    Inputs,
    dino,
    following,
    gaps,
    ibot,
    ibot_plus_plus,
    maps,
    msn,
    ordered,
    power_law,
    swav,
    vicreg,
    vicregl,
    views,
)
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map


@dataclass
class Case:
    """A class: its module, arguments of forward, constructor options worth a run each."""

    module: str
    inputs: Inputs
    options: Sequence[dict] = ({},)
    gather: str = ""  # the option that lets processes work together
    steps: int = 1  # calls in a row, where the object has a state
    rows: Sequence[int] = (8, 13, 200)
    tolerance: float = 1e-11  # of float64 results, where Lightly rounds something to float32
    half: bool = True  # Lightly takes bfloat16
    kernel: bool = True  # products and decompositions alone are PyTorch's
    sharded: bool = True  # the processes' inputs may be slices of one process's


CASES: dict[str, Case] = {
    "SwaVLoss": Case(
        "swav_loss",
        swav,
        options=(
            {},
            {"temperature": 0.3, "sinkhorn_iterations": 5, "sinkhorn_epsilon": 0.2},
            {"sinkhorn_iterations": 0, "sinkhorn_epsilon": 0.5},
        ),
        gather="sinkhorn_gather_distributed",
    ),
    "DINOLoss": Case(
        "dino_loss",
        dino,
        options=(
            {"output_dim": 50},
            {"output_dim": 50, "teacher_temp": 0.2, "student_temp": 0.4, "center_momentum": 0.5},
        ),
        steps=3,
        tolerance=2e-6,
        half=False,
    ),
    "IBOTPatchLoss": Case(
        "ibot_loss",
        ibot,
        options=(
            {"output_dim": 50},
            {"output_dim": 50, "teacher_temp": 0.2, "student_temp": 0.4, "center_momentum": 0.5},
        ),
        steps=3,
        tolerance=2e-6,
        sharded=False,
    ),
    "IBOTPlusPlusPatchLoss": Case(
        "ibot_loss",
        ibot_plus_plus,
        options=({"output_dim": 50},),
        steps=3,
        tolerance=2e-6,
        sharded=False,
    ),
    "MSNLoss": Case(
        "msn_loss",
        msn,
        options=(
            {},
            {"temperature": 0.3, "sinkhorn_iterations": 0, "regularization_weight": 2.5},
            {"sinkhorn_iterations": 1, "regularization_weight": 0},
            {"regularization_weight": -1.0},
        ),
        gather="gather_distributed",
    ),
    "PMSNLoss": Case(
        "pmsn_loss",
        msn,
        options=(
            {},
            {"temperature": 0.3, "regularization_weight": 2.5, "power_law_exponent": 1.0},
            {"sinkhorn_iterations": 0, "regularization_weight": 0},
        ),
        gather="gather_distributed",
        tolerance=1e-6,
    ),
    "PMSNCustomLoss": Case(
        "pmsn_loss",
        msn,
        options=(
            {"target_distribution": power_law},
            {"target_distribution": following, "regularization_weight": 2.5},
        ),
        gather="gather_distributed",
        tolerance=1e-6,
    ),
    "HypersphereLoss": Case(
        "hypersphere_loss",
        views(2, 24),
        options=({}, {"t": 2.0, "lam": 0.3, "alpha": 1.0}, {"alpha": 3.0}),
        half=False,
    ),
    "NTXentLoss": Case(
        "ntx_ent_loss",
        views(2, 24),
        options=(
            {},
            {"temperature": 0.07},
            {"temperature": -1.0},
            {"memory_bank_size": (300, 24), "temperature": 0.2},
            {"memory_bank_size": [20, 24], "temperature": -0.5},
        ),
        gather="gather_distributed",
        steps=3,
    ),
    "DCLLoss": Case(
        "dcl_loss",
        views(2, 24),
        options=({}, {"temperature": 0.5, "weight_fn": gaps}, {"temperature": -0.5}),
        gather="gather_distributed",
    ),
    "DCLWLoss": Case(
        "dcl_loss",
        views(2, 24),
        options=({}, {"temperature": 0.5, "sigma": 0.1}),
        gather="gather_distributed",
    ),
    "BarlowTwinsLoss": Case(
        "barlow_twins_loss",
        views(2, 40),
        options=({}, {"lambda_param": 0.3}),
        gather="gather_distributed",
    ),
    "VICRegLoss": Case(
        "vicreg_loss",
        vicreg,
        options=({}, {"lambda_param": 1.0, "mu_param": 3.0, "nu_param": 20.0, "eps": 0.2}),
        gather="gather_distributed",
    ),
    "VICRegLLoss": Case(
        "vicregl_loss",
        vicregl,
        options=({}, {"alpha": 0.3, "nu_param": 20.0, "eps": 0.2, "num_matches": (5, 30)}),
        gather="gather_distributed",
        rows=(8, 13),
        half=False,
    ),
    "NegativeCosineSimilarity": Case(
        "negative_cosine_similarity",
        lambda rows, step: views(2, 24)(rows, step) if rows != 13 else maps(),
        options=({}, {"dim": 0, "eps": 10.0}, {"dim": -1}),
    ),
    "SymNegCosineSimilarityLoss": Case(
        "sym_neg_cos_sim_loss",
        lambda rows, step: (views(2, 24)(rows, 0), views(2, 24)(rows, 1)),
    ),
    "KoLeoLoss": Case("koleo_loss", views(1, 24), options=({}, {"p": 1.0, "eps": 1e-3})),
    "TiCoLoss": Case(
        "tico_loss",
        views(2, 24),
        options=({}, {"beta": 0.5, "rho": 20.0}),
        gather="gather_distributed",
        steps=3,
    ),
    "MMCRLoss": Case(
        "mmcr_loss",
        lambda rows, step: tuple(normal(rows, 3, 20, seed=i).double() for i in range(2)),
        options=({}, {"lmda": 0.5}, {"lmda": 0}),
        rows=(8, 13, 40),
        tolerance=1e-9,
        half=False,
    ),
    "FroSSLLoss": Case(
        "frossl_loss",
        lambda rows, step: (list(views(3 if rows == 13 else 2, 24)(rows, step)),),
        options=({}, {"invariance_weight": 5.0}),
    ),
    "WMSELoss": Case(
        "wmse_loss",
        lambda rows, step: views(1, 6)(6 * rows, step),
        options=(
            {"embedding_dim": 6, "w_size": 13},
            {"embedding_dim": 6, "w_size": 26, "w_iter": 2, "eps": 0.2, "num_samples": 3},
            {"embedding_dim": 6, "w_size": 13, "loss_fn": ordered, "momentum": 0.3},
            {"embedding_dim": 6, "w_size": 39, "track_running_stats": False},
        ),
        rows=(13, 26),
        steps=2,
        half=False,
        sharded=False,
    ),
    "Whitening2d": Case(
        "wmse_loss",
        views(1, 6),
        options=({"num_features": 6}, {"num_features": 6, "eps": 0.2, "momentum": 0.3}),
        kernel=False,
        rows=(13, 200),
        steps=2,
        half=False,
    ),
}


def of_lightly() -> dict[str, type]:
    """Lightly's classes by name, as far as the installed one has them; not all are exported."""
    found = {}
    for name, case in CASES.items():
        with contextlib.suppress(ModuleNotFoundError):
            module = importlib.import_module(f"lightly.loss.{case.module}")
            found[name] = getattr(module, name)
    return found


@dataclass
class Outcome:
    """What one call, or several in a row, leave behind."""

    values: list[Tensor]
    gradients: list[Tensor | None]
    buffers: dict[str, Tensor]


def run(
    cls: type, case: Case, options: dict, rows: int, dtype: torch.dtype, shard: slice | None = None
) -> Outcome:
    """Construct, call `case.steps` times, differentiate each time with an upstream of -1.5."""
    torch.manual_seed(5)
    loss_fn = cls(**options)
    if dtype == torch.float64:
        loss_fn.double()  # Lightly's bank must have the inputs' type
    prepared = functools.partial(
        leaf, dtype=dtype, rows=rows, shard=shard if case.sharded else None
    )
    values, gradients = [], []
    for step in range(case.steps):
        arguments = tree_map(prepared, case.inputs(rows, step))
        value = loss_fn(*arguments)
        upstream = torch.full_like(value, -1.5)
        if value.numel() > 1:
            upstream = normal(*value.shape, seed=7).to(value.dtype)
        value.backward(upstream)
        values.append(value.detach())
        gradients += [x.grad for x in tree_leaves(arguments) if isinstance(x, Tensor)]
    return Outcome(values, gradients, dict(loss_fn.named_buffers()))


def leaf(x: Any, dtype: torch.dtype, rows: int, shard: slice | None) -> Any:
    """In `dtype`, with gradient; of what is sharded, one process's rows."""
    if not isinstance(x, Tensor):
        return x
    if shard is not None and x.dim() and len(x) % rows == 0:
        x = x[shard]
    return x.to(dtype).requires_grad_() if x.is_floating_point() else x


def parameters(function: Callable) -> list[tuple]:
    """(name, kind, default) of every parameter but self."""
    return [
        (p.name, p.kind, p.default)
        for p in inspect.signature(function).parameters.values()
        if p.name != "self"
    ]


def combinations() -> Iterator[tuple[str, dict]]:
    for name, case in CASES.items():
        for options in case.options:
            yield name, options
