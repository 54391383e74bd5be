"""ssl_fast.compat.solo against the formulas of solo-learn's functions, which need not be there."""

import inspect

import numpy as np
import pytest
import torch
from checks import DTYPES, assert_right, normal, probabilities, unit, value_and_grads
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from ssl_fast import backend as dispatch
from ssl_fast.compat import solo

ROWS = (8, 33)


def barlow(z1: Tensor, z2: Tensor, lamb: float, scale: float) -> Tensor:
    a, b = ((z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt() for z in (z1, z2))
    c = a.T @ b / len(a)
    off = c - c.diagonal().diag()
    return scale * ((c.diagonal() - 1).square().sum() + lamb * off.square().sum())


def simclr(z: Tensor, index: Tensor, temperature: float) -> Tensor:
    z = normalize(z, dim=-1)
    e = (z @ z.T / temperature).exp()
    same = index[:, None] == index
    positive = (e * (same & ~torch.eye(len(z), dtype=torch.bool))).sum(1)
    return -(positive / (positive + (e * ~same).sum(1))).log().mean()


def labelled(logits: Tensor, labels: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits, labels)


def vicreg(z1: Tensor, z2: Tensor, sim: float, var: float, cov: float) -> Tensor:
    total = sim * (z1 - z2).square().mean()
    for z in (z1, z2):
        c = z.T.cov()
        off = c - c.diagonal().diag()
        total = total + var * (1 - (z.var(0) + 1e-4).sqrt()).relu().mean()
        total = total + cov * off.square().sum() / z.shape[1]
    return total


def vibcreg(z1: Tensor, z2: Tensor, sim: float, var: float, cov: float) -> Tensor:
    total = vicreg(z1, z2, sim, var, 0.0)
    for z in (z1, z2):
        r = z.T.corrcoef()
        total = total + cov * (r - r.diagonal().diag()).square().mean()
    return total


def views(n: int, d: int = 12, count: int = 2) -> list[Tensor]:
    return [normal(n, d, seed=i) for i in range(count)]


def moco(q: Tensor, k: Tensor, queue: Tensor) -> Tensor:
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue], 1) / 0.2
    return labelled(logits, torch.zeros(len(q), dtype=torch.long))


def in_batch(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    return labelled(normalize(q) @ normalize(k).T / temperature, torch.arange(len(q)))


def ressl(q: Tensor, k: Tensor, queue: Tensor) -> Tensor:
    target = (k.detach() @ queue.T / 0.05).softmax(1)
    return -(target * (q @ queue.T / 0.2).log_softmax(1)).sum(1).mean()


def index(n: int, count: int) -> Tensor:
    return torch.arange(n).repeat(count)


# name: (ours, formula, inputs of N rows, how many of them get a gradient)
CASES = {
    "barlow": (
        lambda a, b: solo.barlow_loss_func(a, b, 0.01, 0.1),
        lambda a, b: barlow(a, b, 0.01, 0.1), views, 2,
    ),
    "byol": (
        solo.byol_loss_func,
        lambda a, b: 2 - 2 * cosine_similarity(a, b, dim=-1).mean(), views, 1,
    ),
    "simsiam": (
        lambda a, b: solo.simsiam_loss_func(a, b, simplified=False),
        lambda a, b: -(normalize(a) * normalize(b)).sum(1).mean(), views, 1,
    ),
    "wmse": (
        lambda a, b: solo.wmse_loss_func(a, b, False),
        lambda a, b: 2 - 2 * (normalize(a) * normalize(b)).sum(1).mean(), views, 2,
    ),
    "simclr": (
        lambda z: solo.simclr_loss_func(z, index(len(z) // 2, 2)),
        lambda z: simclr(z, index(len(z) // 2, 2), 0.1),
        lambda n: [torch.cat(views(n))], 1,
    ),
    "simclr, three views": (
        lambda z: solo.simclr_loss_func(z, index(len(z) // 3, 3), 0.3),
        lambda z: simclr(z, index(len(z) // 3, 3), 0.3),
        lambda n: [torch.cat(views(n, count=3))], 1,
    ),
    "simclr, classes": (
        lambda z: solo.simclr_loss_func(z, torch.arange(len(z)) % 3, 0.3),
        lambda z: simclr(z, torch.arange(len(z)) % 3, 0.3), lambda n: views(n, count=1), 1,
    ),
    "mocov2plus": (
        lambda q, k, w: solo.mocov2plus_loss_func(q, k, w, 0.2), moco,
        lambda n: [unit(n, 12), unit(n, 12, seed=1), unit(50, 12, seed=2).T], 1,
    ),
    "mocov3": (
        solo.mocov3_loss_func, lambda q, k: in_batch(q, k, 0.2) * 0.4, views, 2,
    ),
    "nnclr": (solo.nnclr_loss_func, lambda n, p: in_batch(n, p, 0.1), views, 2),
    "swav": (
        lambda a, b, c, p, q: solo.swav_loss_func([a, b, c], [p, q], 0.2),
        lambda a, b, c, p, q: torch.stack([
            -(t * (x / 0.2).log_softmax(1)).sum(1).mean()
            for t, x in ((p, b), (p, c), (q, a), (q, c))
        ]).mean(),
        lambda n: [*views(n, count=3), probabilities(n, 12), probabilities(n, 12, seed=1)], 3,
    ),
    "ressl": (
        lambda q, k, w: solo.ressl_loss_func(q, k, w, 0.2, 0.05), ressl,
        lambda n: [unit(n, 12), unit(n, 12, seed=1), unit(50, 12, seed=2)], 1,
    ),
    "vicreg": (
        lambda a, b: solo.vicreg_loss_func(a, b, 3.0, 2.0, 5.0),
        lambda a, b: vicreg(a, b, 3.0, 2.0, 5.0), views, 2,
    ),
    "vibcreg": (
        lambda a, b: solo.vibcreg_loss_func(a, b, 3.0, 2.0, 5.0),
        lambda a, b: vibcreg(a, b, 3.0, 2.0, 5.0), views, 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", CASES)
def test_values(name, rows) -> None:
    """Float32 and float64: value and gradients, with a kernel that ran."""
    ours, formula, inputs, wrt = CASES[name]
    for dtype in (torch.float32, torch.float64):
        with dispatch.trace() as ran:
            assert_right(
                ours, formula, [x.to(dtype) for x in inputs(rows)], wrt, torch.tensor(-1.5)
            )
        assert {used for _, used in ran} == {"native"}


def test_constants_stay_constant() -> None:
    """Targets that solo-learn detaches get no gradient."""
    for function in (solo.byol_loss_func, solo.simsiam_loss_func, solo.wmse_loss_func):
        p, z = (x.requires_grad_() for x in views(5))
        function(p, z).backward()
        assert p.grad is not None and z.grad is None


@pytest.mark.parametrize("wrong", [[0, 1, 0, 1], index(3, 1), index(2, 2)[:, None]])
def test_indexes_are_one_a_row(wrong) -> None:
    with pytest.raises(ValueError, match=r"indexes must be a tensor .*\(4,\), got "):
        solo.simclr_loss_func(normal(4, 3), wrong)


def test_half_results() -> None:
    z = [x.to(DTYPES["bfloat16"]) for x in views(8)]
    assert solo.barlow_loss_func(*z).dtype == torch.bfloat16


def test_dino() -> None:
    """Two epochs of a schedule: losses, gradients and the center of the formula."""
    options = {
        "num_prototypes": 9,
        "warmup_teacher_temp": 0.2,
        "teacher_temp": 0.5,
        "warmup_teacher_temp_epochs": 3,
        "num_epochs": 6,
    }
    loss_fn = solo.DINOLoss(**options)
    expected = np.concatenate([np.linspace(0.2, 0.5, 3), np.ones(3) * 0.5])
    np.testing.assert_array_equal(loss_fn.teacher_temp_schedule, expected)
    center = torch.zeros(1, 9, dtype=torch.float64)
    for epoch in (1, 4):
        loss_fn.epoch = epoch
        teacher, student = normal(12, 9, seed=epoch), normal(12, 9, seed=9 + epoch)

        def formula(s: Tensor, t: Tensor, temperature=expected[epoch], c=center) -> Tensor:
            q = ((t - c.to(t)) / temperature).softmax(1).chunk(2)
            log_p = (s / 0.1).log_softmax(1).chunk(2)
            return -((q[0] * log_p[1]).sum(1).mean() + (q[1] * log_p[0]).sum(1).mean()) / 2

        exact = value_and_grads(formula, [student.double(), teacher.double()], 1)
        actual = value_and_grads(loss_fn, [student, teacher], 1)
        for a, e in zip(actual, exact, strict=True):
            torch.testing.assert_close(a.double(), e, rtol=2e-6, atol=1e-8)
        center = center * 0.9 + teacher.double().mean(0) * 0.1
        torch.testing.assert_close(loss_fn.center.double(), center, rtol=1e-6, atol=1e-8)


def test_signatures() -> None:
    """As in solo-learn 1.0.6, read there."""

    def shown(function) -> str:
        return ", ".join(
            p.name if p.default is p.empty else f"{p.name}={p.default}"
            for p in inspect.signature(function).parameters.values()
        )

    assert shown(solo.barlow_loss_func) == "z1, z2, lamb=0.005, scale_loss=0.025"
    assert shown(solo.byol_loss_func) == "p, z, simplified=True"
    assert shown(solo.simsiam_loss_func) == "p, z, simplified=True"
    assert shown(solo.wmse_loss_func) == "z1, z2, simplified=True"
    assert shown(solo.simclr_loss_func) == "z, indexes, temperature=0.1"
    assert shown(solo.mocov2plus_loss_func) == "query, key, queue, temperature=0.1"
    assert shown(solo.mocov3_loss_func) == "query, key, temperature=0.2"
    assert shown(solo.nnclr_loss_func) == "nn, p, temperature=0.1"
    assert shown(solo.swav_loss_func) == "preds, assignments, temperature=0.1"
    weights = "z1, z2, sim_loss_weight=25.0, var_loss_weight=25.0, cov_loss_weight="
    assert shown(solo.vicreg_loss_func) == weights + "1.0"
    assert shown(solo.vibcreg_loss_func) == weights + "200.0"
