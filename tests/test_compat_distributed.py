"""ssl_fast.compat.lightly in two processes, against Lightly in two processes (gloo)."""

import compat_ranks
import pytest
import torch
from compat_cases import CASES, run
from processes import outcomes
from test_compat_lightly import EPS, assert_equal, ours

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
