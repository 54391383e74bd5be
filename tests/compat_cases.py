"""One table of Lightly's classes: options and inputs from which all compat tests are generated."""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from checks import normal
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

Inputs = Callable[[int, int], Any]  # (rows, step) -> the arguments of forward, float64


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


def views(count: int, columns: int, scale: float = 1.0) -> Inputs:
    """`count` arguments (rows, columns)."""
    return lambda rows, step: tuple(
        normal(rows, columns, dtype=torch.float64, seed=100 * step + i) * scale
        for i in range(count)
    )


def swav(rows: int, step: int) -> tuple:
    scores = [normal(rows, 50, dtype=torch.float64, seed=i) / 3 for i in range(7)]
    return scores[:2], scores[2:5], [scores[5], scores[6][: rows // 2 + 1]]


def dino(rows: int, step: int) -> tuple:
    logits = [normal(rows, 50, dtype=torch.float64, seed=10 * step + i) for i in range(7)]
    return logits[:2], logits[2:]


def ibot(rows: int, step: int) -> tuple:
    mask = torch.zeros(4, 8, 16, dtype=torch.bool)
    per_image = (rows // 2, 0, rows // 3, rows - rows // 2 - rows // 3)
    for image, count in zip(mask, per_image, strict=True):
        image.view(-1)[
            torch.randperm(128, generator=torch.Generator().manual_seed(step))[:count]
        ] = True
    teacher, student = views(2, 50)(rows, step)
    return teacher, student, mask


def ibot_plus_plus(rows: int, step: int) -> tuple:
    teacher, student = views(2, 50)(4 * rows, step)
    mask = normal(4, rows, seed=step) > 0.3
    if step == 0:
        return teacher.view(4, rows, 50), student.view(4, rows, 50)
    return teacher, student, mask, 0.1, 0.5


def msn(rows: int, step: int) -> tuple:
    shapes = (3 * rows, rows, 30)
    tensors = [normal(n, 24, dtype=torch.float64, seed=i) for i, n in enumerate(shapes)]
    return (*tensors, 0.4) if rows == 13 else tuple(tensors)


def power_law(mean: Tensor) -> Tensor:
    prior = torch.arange(1, len(mean) + 1) ** -0.5
    return (prior / prior.sum()).to(mean)


def following(mean: Tensor) -> Tensor:
    """A target that has a gradient of its own."""
    return (mean * 2).softmax(0)


def gaps(out0: Tensor, out1: Tensor) -> Tensor:
    """Weights that have a gradient, as in DCLLoss's documentation."""
    return ((out0 - out1) ** 2).sum(1)


def vicreg(rows: int, step: int) -> tuple:
    """A map of positions for 13 rows, else plain views; spread about the hinge."""
    shape = (13, 3, 10) if rows == 13 else (rows, 40)
    return tuple(normal(*shape, dtype=torch.float64, seed=i) for i in range(2))


def vicregl(rows: int, step: int) -> tuple:
    def view(seed: int, side: int) -> tuple:
        drawn = [normal(rows, 16, seed=seed), normal(rows, side, side, 6, seed=seed + 1)]
        return tuple(x.double() for x in drawn), normal(rows, side, side, 2, seed=seed + 2).double()

    views = [view(10 * i, 4 if i < 2 else 3) for i in range(2 if rows == 13 else 4)]
    features, grids = [v[0] for v in views], [v[1] for v in views]
    if rows == 13:
        return features, grids
    return features[:2], grids[:2], features[2:], grids[2:]


def maps() -> tuple:
    """Shapes that broadcast, of more than two dimensions."""
    shapes = ((4, 5, 6), (4, 1, 6))
    return tuple(normal(*shape, dtype=torch.float64, seed=i) for i, shape in enumerate(shapes))


def ordered(x0: Tensor, x1: Tensor) -> Tensor:
    """A loss that sees which row stands where."""
    weights = torch.linspace(0, 1, len(x0), dtype=x0.dtype)
    return ((x0 - x1).square().sum(1) * weights).mean()


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
        kernel=False,
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
