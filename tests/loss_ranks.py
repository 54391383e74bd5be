"""One rank of test_losses_distributed.py: `python loss_ranks.py RANK WORLD FOLDER`."""

import sys

import torch
import torch.distributed as dist
from checks import unit
from loss_cases import CASES, D, N
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

STEPS = 2


class Network(torch.nn.Module):
    """A layer that permutes columns, and a loss: forward returns the loss."""

    def __init__(self, name: str):
        super().__init__()
        self.call = CASES[name].call
        self.weight = torch.nn.Parameter(torch.eye(D).roll(1, 0))
        self.loss = CASES[name].make()

    def forward(self, x: torch.Tensor, y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.call(self.loss, x @ self.weight, y @ self.weight, t)


def step(network: torch.nn.Module, rank: int) -> torch.Tensor:
    """The gradient of the rank's own rows, wrapped networks': of all."""
    network.zero_grad()
    torch.manual_seed(5)
    network(*(unit(N, D, seed=10 * rank + seed) for seed in (2, 4, 6))).backward()
    gradient = next(network.parameters()).grad
    return gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient.clone()


def main(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    mesh = init_device_mesh("cpu", (world,))
    wraps = {"ddp": DistributedDataParallel, "fsdp": lambda f: fully_shard(f, mesh=mesh)}
    found = {}
    for name in CASES:
        for how, wrap in wraps.items():
            network = wrap(Network(name))
            found[how, name] = [step(network, rank) for _ in range(STEPS)]
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
