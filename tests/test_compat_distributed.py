"""ssl_fast.compat in two processes (gloo), against Lightly in two, solo-learn's formulas in one."""

import compat_ranks
import pytest
import solo_ranks
import test_compat_solo as solo
import torch
from compat_cases import CASES, run
from processes import outcomes
from test_compat_lightly import EPS, assert_equal, ours
from torch import Tensor
from torch.nn.functional import normalize

pytestmark = pytest.mark.distributed
WORLD = 2


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    """What every rank found: all classes in one start of the processes."""
    return outcomes(compat_ranks, WORLD, tmp_path_factory.mktemp("ranks"), WORLD)


@pytest.mark.parametrize("name", [*compat_ranks.NAMES, "NTXentLoss, bank"])
def test_equals_lightly(found, name) -> None:
    """The loss and the gradients of every rank, with the gathering option where there is one."""
    for rank in found:
        actual, native, exact = rank[name]
        assert_equal(actual, native, exact, 8 * EPS)


@pytest.mark.parametrize("name", ["MSNLoss", "BarlowTwinsLoss"])
def test_not_strict(found, name) -> None:
    """strict=False: every rank has all rows' loss, and the gradients' mean is one process's.

    MSN's anchors: each rank holds its slice of the first view.
    """
    case = CASES[name]
    half = run(getattr(ours, name), first_view(case), {}, compat_ranks.ROWS, torch.float32)
    for i, rank in enumerate(found):
        actual = rank[f"{name}, not strict"]
        torch.testing.assert_close(actual.values, half.values, rtol=2e-6, atol=0)
        rows = slice(i * 8, (i + 1) * 8)
        expected = half.gradients[0][rows]
        torch.testing.assert_close(actual.gradients[0] / WORLD, expected, rtol=1e-5, atol=1e-7)


def first_view(case):
    def inputs(rows, step):
        first, *rest = case.inputs(rows, step)
        return first[:rows], *rest

    return type(case)(**{**vars(case), "inputs": inputs})


def own(rank: int) -> slice:
    return slice(rank * solo_ranks.ROWS, (rank + 1) * solo_ranks.ROWS)


def in_batch(rank: int, q: Tensor, k: Tensor, temperature: float) -> Tensor:
    labels = torch.arange(len(k))[own(rank)]
    return solo.labelled(normalize(q[own(rank)]) @ normalize(k).T / temperature, labels)


def simclr(rank: int, x: Tensor, y: Tensor, index_of_rank) -> Tensor:
    """One process's mean over the rows of a rank: two of each sample, at the same index."""
    z = normalize(torch.cat([x, y]))
    index = torch.cat([index_of_rank(r) for r in range(WORLD)]).repeat(2)
    e = (z @ z.T / 0.3).exp()
    same = index[:, None] == index
    positive = (e * (same & ~torch.eye(len(z), dtype=torch.bool))).sum(1)
    losses = -(positive / (positive + (e * ~same).sum(1))).log()
    return losses.view(2, -1)[:, own(rank)].mean()


def barlow(rank: int, x: Tensor, y: Tensor) -> Tensor:
    """Of the mean of the ranks' correlations, each of its own statistics; the same on all."""
    parts = (z.view(WORLD, solo_ranks.ROWS, -1) for z in (x, y))
    a, b = (
        (z - z.mean(1, True)) / (z.var(1, correction=0, keepdim=True) + 1e-5).sqrt() for z in parts
    )
    c = (a.mT @ b).mean(0) / solo_ranks.ROWS
    off = c - c.diagonal().diag()
    return 0.025 * ((c.diagonal() - 1).square().sum() + 5e-3 * off.square().sum())


def of_all(formula, rank: int, x: Tensor, y: Tensor) -> Tensor:
    """Weights 3, 2, 5; the invariance alone is the rank's."""
    return formula(x, y, 0.0, 2.0, 5.0) + 3 * (x[own(rank)] - y[own(rank)]).square().mean()


FORMULAS = {
    "mocov3": lambda rank, x, y: in_batch(rank, x, y.detach(), 0.2) * 0.4,
    "nnclr": lambda rank, x, y: in_batch(rank, x, y, 0.1),
    "vicreg": lambda rank, x, y: of_all(solo.vicreg, rank, x, y),
    "vibcreg": lambda rank, x, y: of_all(solo.vibcreg, rank, x, y),
    **{
        f"simclr, {name}": lambda rank, x, y, index=index: simclr(rank, x, y, index)
        for name, index in solo_ranks.INDEXES.items()
    },
    "barlow": barlow,
}


@pytest.fixture(scope="module")
def found_solo(tmp_path_factory) -> list[dict]:
    return outcomes(solo_ranks, WORLD, tmp_path_factory.mktemp("solo"), WORLD)


@pytest.mark.parametrize("name", solo_ranks.CASES)
def test_equals_solo_learn(found_solo, name) -> None:
    """Each rank's loss; the gradient of the ranks' sum, as gathering with gradient has it."""
    views = zip(*map(solo_ranks.inputs, range(WORLD)), strict=True)
    leaves = [torch.cat(ranks).requires_grad_() for ranks in views]
    losses = torch.stack([FORMULAS[name](rank, *leaves) for rank in range(WORLD)])
    total = losses.mean() if name == "barlow" else losses.sum()  # its all-reduce has no gradient
    gradients = torch.autograd.grad(total, leaves, allow_unused=True)
    for rank, found in enumerate(found_solo):
        value, *grads = found[name]
        torch.testing.assert_close(value, losses[rank].detach())
        for actual, expected in zip(grads, gradients, strict=True):
            assert (actual is None) == (expected is None)
            if actual is not None:
                torch.testing.assert_close(actual, expected[own(rank)])
