"""All losses inside DDP and FSDP: the ranks' mean gradient, in the first step and the next."""

import loss_ranks
import pytest
import torch
from checks import assert_relative
from loss_cases import CASES
from processes import outcomes

pytestmark = pytest.mark.distributed
WORLD = 2


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    return outcomes(loss_ranks, WORLD, tmp_path_factory.mktemp("ranks"), WORLD)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_gradient_is_the_mean_of_the_ranks(found, how, name) -> None:
    for rank in found:
        for actual, exact in zip(rank[how, name], alone(how, name), strict=True):
            assert_relative(actual, exact.double(), 1e-6, tiny=1e-7)


def alone(how: str, name: str) -> list[torch.Tensor]:
    """Of each step the mean gradient, from one process; DDP hands rank 0's buffers to all."""
    networks = [loss_ranks.Network(name) for _ in range(WORLD)]
    means = []
    for _ in range(loss_ranks.STEPS):
        if how == "ddp":
            for network in networks[1:]:
                network.load_state_dict(networks[0].state_dict())
        steps = [loss_ranks.step(network, rank) for rank, network in enumerate(networks)]
        means.append(torch.stack(steps).mean(0))
    return means
