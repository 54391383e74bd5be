"""Two processes train as one with the whole batch does, every method, for 22 steps."""

import subprocess
import sys

import pytest
import torch

for package in ("lightning", "torchvision", "sklearn", "timm", "jsonargparse", "rich"):
    pytest.importorskip(package, reason="the driver needs pip install ssl_fast[train]")

import train_ranks  # noqa: E402
from processes import free_port, outcomes  # noqa: E402
from train_runs import small_run  # noqa: E402

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


def torchrun(*where: str, devices: int, nodes: int, folder) -> subprocess.Popen:
    command = small_run(folder, "simclr", "--epochs", "2", "--batch-size", "256")
    processes = ["--devices", str(devices), "--num-nodes", str(nodes)]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(devices)]
    return subprocess.Popen([*launch, *where, "-m", "ssl_fast.cli", *command, *processes])


def test_torchrun_is_lightnings_launcher(tmp_path):
    """On one machine, and on two, which are this one twice: bitwise `--devices 2` each time."""
    port = str(free_port())
    own = small_run(tmp_path / "own", "simclr", "--epochs", "2", "--batch-size", "256")
    subprocess.run([sys.executable, "-m", "ssl_fast.cli", *own, "--devices", "2"], check=True)
    alone = torchrun("--master-port", port, devices=2, nodes=1, folder=tmp_path / "one")
    assert alone.wait(timeout=300) == 0
    where = ["--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    both = [
        torchrun(*where, "--node-rank", str(rank), devices=1, nodes=2, folder=tmp_path / "two")
        for rank in (0, 1)
    ]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    own, one, two = (
        torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("own", "one", "two")
    )
    for name, value in own.items():
        assert torch.equal(value, one[name]) and torch.equal(value, two[name]), name
