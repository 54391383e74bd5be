"""Seconds of loss and network, by a clock that known parts move on."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

for package in ("lightning", "torchvision", "sklearn", "timm", "jsonargparse", "rich"):
    pytest.importorskip(package, reason="the driver needs pip install ssl_fast[train]")

from ssl_fast.losses import SimSiamLoss  # noqa: E402
from ssl_fast.train import cost  # noqa: E402
from ssl_fast.train.cost import Cost, losses_of, table  # noqa: E402


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    monkeypatch.setattr(cost, "time", SimpleNamespace(perf_counter=lambda: Sleep.now))


class Sleep(torch.autograd.Function):
    now = 0.0

    @staticmethod
    def forward(ctx, x, seconds):
        ctx.seconds = seconds
        Sleep.now += seconds
        return x.clone()

    @staticmethod
    def backward(ctx, d_x):
        Sleep.now += 2 * ctx.seconds
        return d_x, None


class SleepyLoss(SimSiamLoss):
    def forward(self, p, z):
        return Sleep.apply(p, 0.04).sum() + z.detach().sum()


class Module(nn.Module):
    """z also feeds the predictor, whose backward is the network's."""

    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.network, self.criterion = nn.Linear(3, 3), SleepyLoss()

    def step(self, callback):
        callback.on_train_batch_start()
        z = Sleep.apply(self.network(torch.ones(2, 3)), 0.03)
        loss = self.criterion(Sleep.apply(z, 0.03), z)
        callback.on_before_backward()
        loss.backward()
        callback.on_after_backward()


def test_sleeps_are_told_apart():
    module, callback = Module(), Cost()
    callback.on_fit_start(None, module)
    for _ in range(3):
        module.step(callback)
    callback.on_train_epoch_end()
    facts = callback.facts()
    assert facts["steps"] == 3
    assert facts["loss_seconds"] == pytest.approx(3 * (0.04 + 0.08))
    assert facts["network_seconds"] == pytest.approx(3 * 2 * (0.03 + 0.06))
    assert facts["peak_bytes"] > 2**20


def test_sums_go_on_after_a_resume():
    module, callback, later = Module(), Cost(), Cost()
    callback.on_fit_start(None, module)
    module.step(callback)
    later.load_state_dict(callback.state_dict())
    assert later.facts() == callback.facts()
    assert later.facts()["steps"] == 1


def test_outermost_losses_are_found_once():
    outer = nn.Module()
    outer.criterion = SimSiamLoss()
    outer.criterion.inner = SimSiamLoss()
    outer.also = nn.ModuleList([nn.MSELoss(), nn.Linear(2, 2)])
    assert [type(found) for found in losses_of(outer)] == [SimSiamLoss, nn.MSELoss]


def test_parts_of_the_table_sum_to_the_run():
    facts = {"loss_seconds": 1.0, "network_seconds": 5.0, "seconds": 8.0, "steps": 4}
    found = table(facts | {"peak_bytes": 3 << 20, "loss_backend": "native"})
    assert [row[1] for row in found.rows] == [1.0, 5.0, 2.0]
    assert sum(row[2] for row in found.rows) == 1
    assert "native" in found.title and "3 MiB" in found.title
