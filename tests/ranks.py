"""One rank of the gloo tests: `python ranks.py RANK COUNTS FOLDER` runs every case on its rows.

COUNTS are the rows of each rank, as "5,11". Results go to FOLDER/RANK.pt. test_distributed.py
starts the ranks, and runs the same cases in one process on all rows.
"""

import sys
from typing import Any

import torch
import torch.distributed as dist
from checks import normal, probabilities, unit

import ssl_fast
from ssl_fast import backend as dispatch
from ssl_fast.functional import (
    Assignment,
    alignment,
    covariance_penalty,
    cross_correlation_penalty,
    decoupled_nt_xent,
    gaussian_uniformity,
    info_nce,
    linear_soft_cross_entropy,
    msn,
    multi_crop_cross_entropy,
    multi_view_nt_xent,
    nt_xent,
    nuclear_norm,
    prior_kl,
    sinkhorn,
    soft_cross_entropy,
    variance_hinge,
    vicreg,
    wasserstein_uniformity,
)
from ssl_fast.losses import (
    AlignUniformLoss,
    DCLWLoss,
    DINOLoss,
    FroSSLLoss,
    IBOTLoss,
    INTLLoss,
    KoLeoLoss,
    MECLoss,
    MMCRLoss,
    MoCoLoss,
    MSNLoss,
    NNCLRLoss,
    PMSNLoss,
    ReSALoss,
    SwAVLoss,
    WassersteinUniformityLoss,
    ZeroCLLoss,
)

N, D = 16, 6
PRIOR = torch.arange(1, N + 1).pow(-0.5) / torch.arange(1, N + 1).pow(-0.5).sum()
SCORES = unit(N, D, seed=11) @ unit(N, D, seed=12).T
FAR = SCORES * 3 + torch.where(torch.arange(N) < 4, 200.0, 0.0)[:, None]
FAR[:4, 7] -= 1e3  # a prototype that the first ranks' samples never pick
DENSE = probabilities(N, N, seed=13)
WIDE = unit(40, D, seed=14)


def assigned(rows: slice, group: Any, **options: Any) -> Assignment:
    return Assignment.sinkhorn(SCORES[rows], group=group, **options)


def from_pair(rows: slice, group: Any) -> Assignment:
    return Assignment.sinkhorn((unit(N, 2, seed=2)[rows], unit(40, 2, seed=3)), group=group)


def logits_case(targets: Any, **options: Any) -> Any:
    def run(rows: slice, group: Any) -> dict:
        logits = normal(N, N, seed=1)[rows].requires_grad_()
        loss = soft_cross_entropy(logits, targets(rows, group), group=group, **options)
        return results(loss, {"logits": logits})

    return run


def linear_case(targets: Any, weight: Any, **options: Any) -> Any:
    def run(rows: slice, group: Any) -> dict:
        x, w = unit(N, D)[rows].requires_grad_(), weight.clone().requires_grad_()
        loss = linear_soft_cross_entropy(x, w, targets(rows, group), group=group, **options)
        return results(loss, {"x": x}, {"weight": w})

    return run


def resa_case(**options: Any) -> Any:
    def run(rows: slice, group: Any) -> dict:
        names = ("z0", "z1", "m0", "m1")
        z = {n: unit(N, D, seed=i)[rows].requires_grad_() for i, n in enumerate(names)}
        h, h_m = unit(N, D, seed=7)[rows], unit(N, D, seed=8)[rows]
        loss = ReSALoss(group=group, **options)([z["z0"], z["z1"]], [z["m0"], z["m1"]], h, h_m)
        return results(loss, z)

    return run


def pair_case(function: Any, size: float = 1.0) -> Any:
    """A function of two views of unit rows, times `size`."""

    def run(rows: slice, group: Any) -> dict:
        x, y = ((size * unit(N, D, seed=i))[rows].requires_grad_() for i in (3, 4))
        return results(function(x, y, group), {"x": x, "y": y})

    return run


def prior_case(**options: Any) -> Any:
    def run(rows: slice, group: Any) -> dict:
        logits = (4 * normal(N, N, seed=1))[rows].requires_grad_()
        return results(prior_kl(logits, PRIOR, group=group, **options), {"logits": logits})

    return run


def columns_case(function: Any, columns: int, dtype: torch.dtype = torch.float32) -> Any:
    """Two views of `columns` columns: more or fewer than rows decides the form and what travels."""

    def run(rows: slice, group: Any) -> dict:
        z = {f"z{i}": normal(N, columns, seed=i).to(dtype)[rows] + 1 for i in (0, 1)}
        leaves = {name: x.clone().requires_grad_() for name, x in z.items()}
        return results(function(*leaves.values(), group), leaves)

    return run


def spectrum_case(function: Any, width: int, collapsed: bool = False) -> Any:
    """z (N, width): the Grams are added where width <= N, else the rows are gathered."""

    def run(rows: slice, group: Any) -> dict:
        z = unit(N, width, seed=31)
        z = z * torch.logspace(0, -4, width) if collapsed else z
        z = z[rows].requires_grad_()
        return results(function(z, group), {"z": z})

    return run


def msn_case(**options: Any) -> Any:
    """Two views; a rank holds the same rows of both."""

    def run(rows: slice, group: Any) -> dict:
        a, b = (normal(N, D, seed=i)[rows].requires_grad_() for i in range(2))
        w = WIDE.clone().requires_grad_()
        targets = normal(N, D, seed=2)[rows]
        loss = msn(torch.cat([a, b]), targets, w, group=group, **options)
        return results(loss, {"a": a, "b": b}, {"prototypes": w})

    return run


def views_case(loss: Any, width: int, count: int = 2, lists: int = 1) -> Any:
    """Views (N, width), in as many lists as the loss takes."""

    def run(rows: slice, group: Any) -> dict:
        z = {f"z{i}": normal(N, width, seed=40 + i)[rows].requires_grad_() for i in range(count)}
        views = list(z.values())
        size = count // max(lists, 1)
        parts = [views[i : i + size] for i in range(0, count, size)] if lists else views
        return results(loss(group)(*parts), z)

    return run


def crops_case(prototypes: Any) -> Any:
    def run(rows: slice, group: Any) -> dict:
        width = N if prototypes is None else D
        x = {str(i): unit(N, width, seed=i)[rows].requires_grad_() for i in range(3)}
        w = None if prototypes is None else prototypes.clone().requires_grad_()
        teachers = [assigned(rows, group), Assignment.from_dense(DENSE[rows])]
        loss = multi_crop_cross_entropy([*x.values()], teachers, w, temperature=0.1, group=group)
        return results(loss, x, {} if w is None else {"prototypes": w})

    return run


def vicreg_loss(z0: torch.Tensor, z1: torch.Tensor, group: Any) -> torch.Tensor:
    return 25 * sum(vicreg(z0, z1, group=group)[:2]) + vicreg(z0, z1, group=group)[2]


def raw_barlow(z0: torch.Tensor, z1: torch.Tensor, group: Any) -> torch.Tensor:
    """Barlow Twins as published: autograd does not see the sum over ranks."""
    means, sizes = [], []
    for z in (z0, z1):
        mean, square = (t.detach() for t in (z.sum(0), z.square().sum(0)))
        if group is not None:
            dist.all_reduce(mean), dist.all_reduce(square)
        means.append(mean / N)
        sizes.append((square / N - means[-1].square() + 1e-5).sqrt())
    a, b = ((z - m) / s for z, m, s in zip((z0, z1), means, sizes, strict=True))
    c = a.T @ b / N
    if group is not None:
        with torch.no_grad():
            dist.all_reduce(c)
    off = c - torch.diag(c.diagonal())
    return (c.diagonal() - 1).square().sum() + 5e-3 * off.square().sum()


def mmcr_case(rows: slice, group: Any) -> dict:
    online, momentum = (normal(N, 2 * D, seed=i).view(N, 2, D)[rows] for i in range(2))
    z = {"online": online.requires_grad_(), "momentum": momentum.requires_grad_()}
    return results(MMCRLoss(0.1, group=group)(*z.values()), z)


def contrast_case(function: Any, seeds: tuple = (0, 1), **options: Any) -> Any:
    """Some views of a batch; a zero row among them."""

    def run(rows: slice, group: Any) -> dict:
        views = {f"z{i}": normal(N, D, seed=i) for i in seeds}
        views["z1"][7] = 0
        views = {name: z[rows].clone().requires_grad_() for name, z in views.items()}
        return results(function(*views.values(), group=group, **options), views)

    return run


SHARES = PRIOR.flip(0)  # a prior whose order is not that of the masses


def swav_case(**options: Any) -> Any:
    """The second step, when the queue is full: of this rank's rows, in another order than alone."""

    def run(rows: slice, group: Any) -> dict:
        w = WIDE[:N].clone().requires_grad_()
        count = len(range(N)[rows])
        if options.get("queue"):
            more = {"queue_length": count, "embedding_dim": D}
        else:
            more = {}
        loss = SwAVLoss(group=group, **more, **{k: v for k, v in options.items() if k != "queue"})
        for step in (0, 10):
            x = {str(i): unit(N, D, seed=i + step)[rows].requires_grad_() for i in range(3)}
            value = loss([*x.values()], w)
        return results(value, x, {"prototypes": w})

    return run


def nnclr(group: Any) -> NNCLRLoss:
    torch.manual_seed(0)
    return NNCLRLoss(queue_size=20, dim=D, group=group)


def queue_case(rows: slice, group: Any) -> dict:
    q, k = (normal(N, D, seed=i)[rows].requires_grad_() for i in (0, 1))
    queue = WIDE.clone().requires_grad_()
    loss = info_nce(q, k, queue, temperature=0.1, group=group)
    return results(loss, {"query": q, "key": k}, {"queue": queue})


def moco_case(rows: slice, group: Any) -> dict:
    """Two steps: the second meets the keys of all ranks in the queue."""
    torch.manual_seed(0)
    loss = MoCoLoss(queue_size=20, dim=D, group=group)
    loss(normal(N, D, seed=2)[rows], normal(N, D, seed=3)[rows])
    q, k = normal(N, D)[rows].requires_grad_(), normal(N, D, seed=1)[rows]
    return results(loss(q, k), {"query": q}) | {"same": {"queue": loss.queue.rows}}


def dino_case(**options: Any) -> Any:
    """The second step: the centre has moved."""

    def run(rows: slice, group: Any) -> dict:
        w = WIDE[:N].clone().requires_grad_()
        loss = DINOLoss(N, group=group, **options)
        for step in (0, 10):
            x = {str(i): unit(N, D, seed=i + step)[rows].requires_grad_() for i in range(3)}
            teachers = [unit(N, D, seed=i + step + 5)[rows] for i in range(2)]
            value = loss([*x.values()], teachers, w, unit(N, D, seed=20))
        return {**results(value, x, {"prototypes": w}), "same": {"center": loss.center.clone()}}

    return run


def ibot_case(rows: slice, group: Any) -> dict:
    """Images of 1, 2, 3, 1, 2, 3, ... masked tokens; a rank holds whole images."""
    counts = torch.tensor([1 + i % 3 for i in range(N)])
    mask = torch.arange(3) < counts[:, None]
    tokens = mask[rows].sum().item()
    first = counts[: rows.start].sum().item()
    x = unit(counts.sum().item(), D)[first : first + tokens].requires_grad_()
    teacher = unit(counts.sum().item(), D, seed=5)[first : first + tokens]
    w = WIDE[:N].clone().requires_grad_()
    loss = IBOTLoss(N, group=group)
    loss(x.detach(), teacher, mask[rows], w)
    value = results(loss(x, teacher, mask[rows], w), {"x": x}, {"prototypes": w})
    return {**value, "same": {"center": loss.center.clone()}}


def koleo_case(rows: slice, group: Any) -> dict:
    x = normal(N, D)[rows].requires_grad_()
    return results(KoLeoLoss(group=group)(x), {"x": x})


def msn_loss_case(loss: Any, **options: Any) -> Any:
    def run(rows: slice, group: Any) -> dict:
        a, b = (normal(N, D, seed=i)[rows].requires_grad_() for i in range(2))
        w = WIDE[:N].clone().requires_grad_()
        value = loss(group=group, **options)(torch.cat([a, b]), normal(N, D, seed=2)[rows], w)
        return results(value, {"a": a, "b": b}, {"prototypes": w})

    return run


def results(loss: torch.Tensor, local: dict, replicated: dict | None = None) -> dict:
    """The loss; gradients of what this rank holds alone ("rows"), and of what all hold ("all")."""
    replicated = replicated or {}
    upstream = normal(*loss.shape, seed=21) if loss.dim() else torch.tensor(-1.5)
    loss.backward(upstream.to(loss.dtype))
    return {
        "value": loss.detach(),
        "rows": {name: x.grad for name, x in local.items()},
        "all": {name: x.grad for name, x in replicated.items()},
    }


def assignment_case(function: Any) -> Any:
    return lambda rows, group: {"rows": {"q": function(rows, group)}, "constant": True}


def dense(rows: slice, group: Any) -> Any:
    return DENSE[rows]


CASES = {
    "sinkhorn": assignment_case(lambda rows, group: sinkhorn(SCORES[rows], group=group)),
    "sinkhorn, prior": assignment_case(
        lambda rows, group: sinkhorn(SCORES[rows], prior=PRIOR, iterations=5, group=group)
    ),
    "sinkhorn, far": assignment_case(lambda rows, group: sinkhorn(FAR[rows], group=group)),
    "sinkhorn, half": assignment_case(
        lambda rows, group: sinkhorn(SCORES[rows].half(), group=group)
    ),
    "assignment": assignment_case(lambda rows, group: assigned(rows, group).dense()),
    "assignment, softmax": assignment_case(
        lambda rows, group: assigned(rows, group, start="softmax", prior=PRIOR).dense()
    ),
    "assignment, pair": assignment_case(lambda rows, group: from_pair(rows, group).dense()),
    "logits, mean": logits_case(dense, reduction="mean"),
    "logits, sum": logits_case(assigned, reduction="sum", temperature=0.2),
    "logits, symmetric": logits_case(assigned, symmetric=True),
    "logits, symmetric sum": logits_case(dense, symmetric=True, reduction="sum"),
    "linear, mean": linear_case(assigned, WIDE[:N], temperature=0.1),
    "linear, sum": linear_case(dense, WIDE[:N], reduction="sum"),
    "linear, pair": linear_case(from_pair, WIDE, temperature=0.1),
    "linear, symmetric": linear_case(assigned, WIDE[:N], symmetric=True, temperature=0.4),
    "linear, symmetric sum": linear_case(dense, WIDE[:N], symmetric=True, reduction="sum"),
    "prior": prior_case(),
    "prior, reverse": prior_case(reverse=True, temperature=0.1),
    "msn": msn_case(),
    "msn, prior a function": msn_case(prior=lambda mean: 0.5 * mean + 0.5 / len(mean)),
    "msn, sinkhorn": msn_case(sinkhorn_iterations=3, reverse=True, prior_weight=2.0),
    "crops": crops_case(WIDE[:N]),
    "crops of logits": crops_case(None),
    "variance": columns_case(lambda a, b, g: variance_hinge(0.3 * a, group=g) + 0 * b.sum(), 5),
    "covariance, reduced": columns_case(
        lambda a, b, g: covariance_penalty(a, group=g) + 0 * b.sum(), 5
    ),
    "vicreg, reduced": columns_case(vicreg_loss, 5),
    "vicreg, gathered": columns_case(vicreg_loss, 23),
    "vicreg, dual": columns_case(vicreg_loss, 50),
    "vicreg, half": columns_case(vicreg_loss, 50, torch.bfloat16),
    "barlow, reduced": columns_case(
        lambda a, b, g: cross_correlation_penalty(a, b, group=g), 5
    ),
    "barlow, gathered": columns_case(
        lambda a, b, g: cross_correlation_penalty(a, b, group=g), 23
    ),
    "barlow, dual": columns_case(lambda a, b, g: cross_correlation_penalty(a, b, group=g), 50),
    "nt_xent": contrast_case(nt_xent),
    "nt_xent, as given": contrast_case(nt_xent, normalize=False, temperature=0.05),
    "nt_xent, views": contrast_case(
        lambda *z, **options: multi_view_nt_xent(z, **options), seeds=(0, 1, 2)
    ),
    "nt_xent, decoupled": contrast_case(decoupled_nt_xent),
    "dclw": contrast_case(lambda *z, group: DCLWLoss(group=group)(*z)),
    "info_nce": contrast_case(info_nce),
    "info_nce, sum": contrast_case(info_nce, reduction="sum", normalize=False),
    "info_nce, queue": queue_case,
    "moco": moco_case,
    "moco v3": contrast_case(
        lambda q, k, group: MoCoLoss(0, temperature=0.5, group=group)(q, k) + 0 * k.sum()
    ),
    "nnclr": contrast_case(
        lambda p, z, group: nnclr(group)(p, p + 1, z, z) + 0 * z.sum()
    ),
    "swav": swav_case(),
    "swav, queue": swav_case(queue=True),
    "swav, sorted": swav_case(prior=SHARES, prior_order="sorted"),
    "dino": dino_case(),
    "dino, sinkhorn": dino_case(centering="sinkhorn", prior=SHARES, prior_order="sorted"),
    "ibot": ibot_case,
    "koleo": koleo_case,
    "msn loss": msn_loss_case(MSNLoss, sinkhorn_iterations=3, entropy_weight=0.5),
    "pmsn loss": msn_loss_case(PMSNLoss, exponent=0.5),
    "resa": resa_case(),
    "resa, rows": resa_case(symmetric=False),
    "nuclear norm": spectrum_case(lambda z, group: nuclear_norm(z, group=group), D),
    "nuclear norm, wide": spectrum_case(lambda z, group: nuclear_norm(z, group=group), 40),
    "nuclear norm, centred": spectrum_case(
        lambda z, group: nuclear_norm(z, center=True, group=group), D
    ),
    "wasserstein": spectrum_case(lambda z, group: wasserstein_uniformity(z, group=group), D),
    "wasserstein, collapsed": spectrum_case(
        lambda z, g: wasserstein_uniformity(z, group=g), D, collapsed=True
    ),
    "wasserstein, wide": spectrum_case(lambda z, g: wasserstein_uniformity(z, group=g), 40),
    "wasserstein, loss": views_case(lambda g: WassersteinUniformityLoss(group=g), D, lists=0),
    "mmcr": mmcr_case,
    "frossl": views_case(lambda g: FroSSLLoss(group=g), D, count=3),
    "frossl, wide": views_case(lambda g: FroSSLLoss(group=g), 40),
    "mec": views_case(lambda g: MECLoss(group=g), D, count=4, lists=2),
    "intl": views_case(lambda g: INTLLoss(group=g), 40),
    "intl, channels": views_case(lambda g: INTLLoss(axis=1, group=g), D),
    "zero_cl": views_case(lambda g: ZeroCLLoss(group=g), D, lists=0),
    "zero_cl, both": views_case(lambda g: ZeroCLLoss("both", group=g), 40, lists=0),
    "uniformity": pair_case(
        lambda x, y, group: gaussian_uniformity(x, group=group)
        + gaussian_uniformity(y, t=5.0, group=group)
    ),
    "uniformity, far": pair_case(
        lambda x, y, group: gaussian_uniformity(x, group=group)
        + gaussian_uniformity(y, group=group),
        size=40.0,
    ),
    "alignment": pair_case(
        lambda x, y, group: alignment(x, y, alpha=1.5, group=group)
    ),
    "align_uniform": pair_case(lambda x, y, group: AlignUniformLoss(group=group)(x, y)),
}  # fmt: skip


def refusals(rows: slice, group: Any) -> list[str]:
    """Messages of what every rank must refuse, rather than hang or answer."""
    calls = [
        lambda: linear_soft_cross_entropy(
            unit(N, D)[rows], WIDE, from_pair(rows, None), symmetric=True, group=group
        ),
        lambda: sinkhorn(SCORES[rows], group=3.5),
    ]
    messages = []
    for call in calls:
        try:
            call()
            messages.append("not refused")
        except (TypeError, ValueError) as error:
            messages.append(f"{type(error).__name__}: {error}")
    return messages


def by_name(rows: slice, group: Any) -> torch.Tensor:
    """A group may be given by its name."""
    return sinkhorn(SCORES[rows], group=group.group_name)


def main(rank: int, counts: list[int], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=len(counts)
    )
    group = dist.group.WORLD
    first = sum(counts[:rank])
    rows = slice(first, first + counts[rank])
    found: dict[str, Any] = {}
    for name in ("reference", "native"):
        if dispatch.why_not(name, "cpu", torch.float32) is None:
            with ssl_fast.set_backend(name), dispatch.trace() as ran:
                found[name] = {case: run(rows, group) for case, run in CASES.items()}
            found[name]["ran"] = {used for _, used in ran}
    found["refusals"] = refusals(rows, group)
    found["raw"] = columns_case(raw_barlow, 5)(rows, group)
    found["by name"] = by_name(rows, group)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), [int(n) for n in sys.argv[2].split(",")], sys.argv[3])
