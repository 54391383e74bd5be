"""Two processes train as one with the whole batch does, every method, for 22 steps."""

import pytest
import torch

for package in ("lightning", "torchvision", "sklearn", "timm", "jsonargparse", "rich"):
    pytest.importorskip(package, reason="the driver needs pip install ssl_fast[train]")

import train_ranks  # noqa: E402
from processes import outcomes  # noqa: E402

from ssl_fast.train.methods import METHODS  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
OWN = {  # what a process takes of its own images alone, as published code does
    "wmse": "samples that are whitened together",
    "cw_rgp": "samples that are whitened together",
    "pcl": "prototypes that are negatives",
    "pauc": "prototypes that are negatives",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[int, list]:
    """Parameters by number of processes, rank and method."""
    return {
        world: outcomes(train_ranks, world, tmp_path_factory.mktemp("ranks"), world)
        for world in (1, 2)
    }


@pytest.mark.parametrize("method", [name for name in METHODS if name not in OWN])
def test_two_processes_are_one(trained, method):
    (one,), (two, _) = trained[1], trained[2]
    assert one[method].keys() == two[method].keys()
    for name, alone in one[method].items():
        error = (two[method][name] - alone).abs().max() / alone.abs().max().clamp_min(1e-30)
        assert error < 1e-5, f"{name}: {error:.1e}"


@pytest.mark.parametrize("method", METHODS)
def test_the_processes_agree(trained, method):
    one, other = trained[2]
    for name, value in one[method].items():
        assert torch.equal(value, other[method][name]), name
        assert torch.isfinite(value).all(), name
