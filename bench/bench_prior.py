"""Prototype losses: MSN and PMSN on 11 views of a batch; SwAV and DINO on multi-crops."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_fast.functional import Assignment, msn, multi_crop_cross_entropy, power_law_prior

from .cases import Bar, Case, Floor, Limit, Memory, Problem, full, lightly, nbytes, unit
from .pytest_cases import parametrize, run

TEMPERATURE, SHARPENING, EPSILON, TEACHER = 0.1, 0.25, 0.05, 0.04
CROPS, LARGE = 8, 2  # SwAV's 2 + 6 crops
DINO_CROPS = 10


def masked_views(shape, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Anchors (V N, D), targets (N, D), prototypes (K, D)."""
    views, rows, prototypes, width = shape
    sizes = (views * rows, rows, prototypes)
    return [torch.randn(n, width, device=device).to(dtype) for n in sizes]


def balanced(q: Tensor, iterations: int = 3) -> Tensor:
    """Sinkhorn of probabilities (N, K), as the official codes have it."""
    q = q.t() / q.sum()
    for _ in range(iterations):
        q = q / q.sum(1, keepdim=True) / q.shape[0]
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).t()


def msn_eager(anchors: Tensor, targets: Tensor, prototypes: Tensor, prior=None) -> Tensor:
    anchors, targets, prototypes = (
        F.normalize(full(x), dim=1) for x in (anchors, targets, prototypes)
    )
    with torch.no_grad():
        scores = targets @ prototypes.t()
        q = balanced(torch.softmax(scores / (TEMPERATURE * SHARPENING), 1))
    log_p = F.log_softmax(anchors @ prototypes.t() / TEMPERATURE, 1)
    views = log_p.view(-1, *q.shape)
    p = log_p.exp().mean(0)
    if prior is None:
        divergence = (p * (p * len(p)).log()).sum()
    else:
        divergence = (prior * (prior / p).log()).sum()
    return -(q * views).sum() / len(log_p) + divergence


def pmsn_eager(anchors: Tensor, targets: Tensor, prototypes: Tensor) -> Tensor:
    ranks = torch.arange(1, len(prototypes) + 1, device=prototypes.device)
    prior = ranks.to(full(prototypes).dtype).pow(-0.25)
    return msn_eager(anchors, targets, prototypes, prior / prior.sum())


def msn_ours(anchors: Tensor, targets: Tensor, prototypes: Tensor) -> Tensor:
    return msn(
        anchors, targets, prototypes, temperature=TEMPERATURE, sharpening=SHARPENING,
        sinkhorn_iterations=3,
    )  # fmt: skip


def pmsn_ours(anchors: Tensor, targets: Tensor, prototypes: Tensor) -> Tensor:
    prior = power_law_prior(len(prototypes)).to(prototypes.device)
    return msn(
        anchors, targets, prototypes, temperature=TEMPERATURE, sharpening=SHARPENING, prior=prior,
        reverse=True, sinkhorn_iterations=3,
    )  # fmt: skip


def msn_products(anchors: Tensor, targets: Tensor, prototypes: Tensor) -> Floor:
    """The teacher's and the anchors' logits; two products back, none formed again."""
    (rows, width), samples, k = anchors.shape, len(targets), len(prototypes)
    return Floor(
        "4 products",
        ((samples, width, k), (k, width, rows)),
        ((rows, k, width), (k, rows, width)),
    )


def bounded(*tensors: Tensor) -> Memory:
    statistics = 64 * sum(len(x) for x in tensors)
    return Memory("inputs and gradients", "kept", 2 * nbytes(*tensors) + statistics)


def crops(shape, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """x (8 N, D), crop by crop, prototypes (K, D)."""
    rows, prototypes, width = shape
    return [unit(n, width, device).to(dtype) for n in (CROPS * rows, prototypes)]


def swav_eager(x: Tensor, prototypes: Tensor) -> Tensor:
    logits = [full(z) @ full(prototypes).t() for z in x.chunk(CROPS)]
    terms = []
    for t in range(LARGE):
        with torch.no_grad():
            q = balanced(torch.exp(logits[t] / EPSILON))
        for s in range(CROPS):
            if s != t:
                terms.append(-(q * F.log_softmax(logits[s] / TEMPERATURE, 1)).sum(1).mean())
    return torch.stack(terms).mean()


def swav_ours(x: Tensor, prototypes: Tensor) -> Tensor:
    students = x.chunk(CROPS)
    teachers = [Assignment.sinkhorn((z, prototypes), epsilon=EPSILON) for z in students[:LARGE]]
    return multi_crop_cross_entropy(students, teachers, prototypes, temperature=TEMPERATURE)


def swav_lightly(loss):
    def run(x: Tensor, prototypes: Tensor) -> Tensor:
        logits = [z @ prototypes.t() for z in x.chunk(CROPS)]
        return loss(logits[:LARGE], logits[LARGE:]).squeeze()

    return run


def swav_products(x: Tensor, prototypes: Tensor) -> Floor:
    """Three a crop, and a teacher's scores for Sinkhorn and again for the targets: not stored."""
    (rows, width), k = x.shape, len(prototypes)
    scores = ((rows // CROPS * LARGE, width, k),) * 2
    return Floor(
        "3 products a crop, 2 a teacher",
        (*scores, *((k, width, rows // CROPS),) * CROPS),
        (*((rows // CROPS, k, width),) * CROPS, *((k, rows // CROPS, width),) * CROPS),
    )


def crop_logits(shape, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Students (10, N, K), teachers (2, N, K)."""
    return [torch.randn(n, *shape, device=device).to(dtype) for n in (DINO_CROPS, LARGE)]


def dino_eager(students: Tensor, teachers: Tensor) -> Tensor:
    q = torch.softmax(full(teachers) / TEACHER, -1)
    loss = -torch.einsum("tnk,snk->ts", q, F.log_softmax(full(students) / TEMPERATURE, -1))
    terms = loss.numel() - LARGE
    return (loss.sum() - loss.diagonal().sum()) / (terms * students.shape[1])


def dino_ours(students: Tensor, teachers: Tensor) -> Tensor:
    held = [Assignment.softmax(t, temperature=TEACHER) for t in teachers]
    return multi_crop_cross_entropy(students.unbind(), held, None, temperature=TEMPERATURE)


def dino_lightly():
    losses: dict[int, torch.nn.Module] = {}

    def run(students: Tensor, teachers: Tensor) -> Tensor:
        width = students.shape[-1]
        if width not in losses:
            losses[width] = lightly("DINOLoss", output_dim=width)().to(students.device)
        losses[width].center.zero_()
        return losses[width](list(teachers), list(students))

    return run


def reads_and_write(students: Tensor, teachers: Tensor) -> Floor:
    read = nbytes(students, teachers)
    return Floor("2 reads + 1 write", read, read + nbytes(students))


_MSN = {"floor": msn_products, "differentiable": (0, 2), "memory": bounded}
MSN = Problem(
    "prior", "MSN", masked_views, msn_eager, msn_ours, rivals=(("lightly", lightly("MSNLoss")),),
    **_MSN,
)  # fmt: skip
PMSN = Problem(
    "prior", "PMSN", masked_views, pmsn_eager, pmsn_ours,
    rivals=(("lightly", lightly("PMSNLoss")),), **_MSN,
)  # fmt: skip
SWAV = Problem(
    "prior", "SwAV 2+6 crops", crops, swav_eager, swav_ours, swav_products,
    differentiable=(0, 1), memory=bounded, rivals=(("lightly", lightly("SwaVLoss", swav_lightly)),),
)  # fmt: skip
DINO = Problem(
    "prior", "DINO 2+8 crops of logits", crop_logits, dino_eager, dino_ours, reads_and_write,
    differentiable=(0,), rivals=(("lightly", dino_lightly),),
)  # fmt: skip

CASES = [
    Case(problem, (11, 64, prototypes, 256), bar=Bar(1.5, "Lightly"))
    for problem in (PMSN, MSN)
    for prototypes in (8142, 1024)
]
CASES += [
    Case(SWAV, (256, 3000, 128), limit=Limit(1.25)),
    Case(DINO, (16, 16384), bar=Bar(2, "Lightly")),
    Case(PMSN, (11, 64, 8142, 256), "bfloat16", "cuda", Bar(3, against="eager")),
    Case(SWAV, (512, 3000, 128), "bfloat16", "cuda", Bar(3, against="eager")),
    Case(DINO, (64, 65536), "bfloat16", "cuda", Bar(2)),
]

pytest_generate_tests = parametrize(CASES)


def test_prior(benchmark, case, contender):
    run(benchmark, case, contender)
