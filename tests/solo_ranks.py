"""One rank of test_compat_distributed.py: `python solo_ranks.py RANK WORLD FOLDER`."""

import sys
from collections.abc import Callable

import torch
import torch.distributed as dist
from checks import normal
from torch import Tensor

from ssl_fast.compat import solo

ROWS, WIDTH = 7, 5
# By rank: of one batch, as torch.arange has them on every rank, or of a data set, one row twice.
INDEXES = {
    "batch": lambda rank: torch.arange(ROWS),
    "data set": lambda rank: torch.tensor([0, 1, 2, 3, 4, 5, 5]) + 20 * rank,
}
CASES: dict[str, Callable[[int, Tensor, Tensor], Tensor]] = {
    "barlow": lambda rank, x, y: solo.barlow_loss_func(x, y),
    "mocov3": lambda rank, x, y: solo.mocov3_loss_func(x, y),
    "nnclr": lambda rank, x, y: solo.nnclr_loss_func(x, y),
    "vicreg": lambda rank, x, y: solo.vicreg_loss_func(x, y, 3.0, 2.0, 5.0),
    "vibcreg": lambda rank, x, y: solo.vibcreg_loss_func(x, y, 3.0, 2.0, 5.0),
    **{
        f"simclr, {name}": lambda rank, x, y, index=index: solo.simclr_loss_func(
            torch.cat([x, y]), index(rank).repeat(2), 0.3
        )
        for name, index in INDEXES.items()
    },
}


def inputs(rank: int) -> list[Tensor]:
    return [normal(ROWS, WIDTH, dtype=torch.float64, seed=2 * rank + i) for i in range(2)]


def main(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    found = {}
    for name, function in CASES.items():
        leaves = [z.requires_grad_() for z in inputs(rank)]
        loss = function(rank, *leaves)
        loss.backward()
        found[name] = [loss.detach(), *(z.grad for z in leaves)]
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
