"""group=: several processes give one process's value, and after DDP's mean its gradients."""

import pytest
import ranks
import torch
from checks import assert_relative, error, same_bits
from processes import outcomes

import ssl_fast
from ssl_fast import backend as dispatch

pytestmark = pytest.mark.distributed

# Unequal rows; with four ranks, one of them has a single row.
COUNTS = {2: (5, 11), 4: (1, 7, 3, 5)}
ALL = slice(0, ranks.N)


@pytest.fixture(scope="module", params=COUNTS, ids=lambda world: f"{world} ranks")
def found(request, tmp_path_factory) -> list[dict]:
    """What every rank found: all cases in one start of the processes."""
    counts = COUNTS[request.param]
    folder = tmp_path_factory.mktemp("ranks")
    return outcomes(ranks, len(counts), folder, ",".join(map(str, counts)))


@pytest.fixture(params=["reference", "native"])
def name(request) -> str:
    if reason := dispatch.why_not(request.param, "cpu", torch.float32):
        pytest.skip(reason)
    return request.param


@pytest.mark.parametrize("case", ranks.CASES)
def test_equals_one_process(found, name, case) -> None:
    """Value on every rank, gradients of sharded rows (local / W), of replicated weights (mean)."""
    with ssl_fast.set_backend(name):
        alone = ranks.CASES[case](ALL, None)
    parts = [rank[name][case] for rank in found]
    world = 1 if alone.get("constant") else len(parts)
    if "value" in alone:
        for part in parts:
            assert_relative(part["value"], alone["value"].double(), 2e-6)
        assert all(same_bits(part["value"], parts[0]["value"]) for part in parts)
    for key, expected in alone["rows"].items():
        together = torch.cat([part["rows"][key] for part in parts]) / world
        assert error(together, expected) <= 2e-6 * float(expected.abs().max()), key
    for key, expected in alone.get("same", {}).items():  # what every rank holds alike
        assert all(error(part["same"][key], expected) <= 1e-6 for part in parts), key
    for key, expected in alone.get("all", {}).items():
        mean = torch.stack([part["all"][key] for part in parts]).mean(0)
        assert error(mean, expected) <= 2e-6 * float(expected.abs().max()), key


def test_raw_all_reduce_loses_a_factor(found, name) -> None:
    """Published Barlow Twins code: the right value, 1/W of its gradient after DDP's mean."""
    alone = ranks.columns_case(ranks.raw_barlow, 5)(ALL, None)
    world = len(found)
    for rank in found:
        assert_relative(rank["raw"]["value"], alone["value"].double(), 1e-5)
    for key, exact in alone["rows"].items():
        raw, ours = (
            torch.cat([part["rows"][key] for part in parts]) / world
            for parts in (
                [rank["raw"] for rank in found],
                [rank[name]["barlow, reduced"] for rank in found],
            )
        )
        assert error(world * raw, exact) <= 1e-5 * float(exact.abs().max())
        with ssl_fast.set_backend(name):
            full = ranks.CASES["barlow, reduced"](ALL, None)["rows"][key]
        assert error(ours, full) <= 2e-6 * float(full.abs().max())


def test_named_backend_ran(found, name) -> None:
    assert all(rank[name]["ran"] == {name} for rank in found)


def test_group_by_name(found) -> None:
    together = torch.cat([rank["by name"] for rank in found])
    assert error(together, ranks.sinkhorn(ranks.SCORES)) < 1e-6


def test_refusals(found) -> None:
    """Every rank raises: 16 rows over all ranks and 40 columns; a group that is none."""
    for rank in found:
        square, group = rank["refusals"]
        assert square.startswith("ValueError") and "16" in square and "40" in square
        assert group.startswith("TypeError") and "group" in group and "float" in group


def test_local_sinkhorn_is_another(found) -> None:
    """The column sums do cross ranks: what a rank would find alone is far from its rows."""
    first = len(found[0]["reference"]["sinkhorn"]["rows"]["q"])
    alone = ranks.sinkhorn(ranks.SCORES[:first])
    assert error(alone, found[0]["reference"]["sinkhorn"]["rows"]["q"]) > 1e-2
