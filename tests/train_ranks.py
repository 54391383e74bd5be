"""One rank of test_train_processes.py: `python train_ranks.py RANK WORLD FOLDER`."""

import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from train_runs import small_run


def main(rank: int, world: int, folder: str) -> None:
    """Saves each method's parameters after an epoch of 22 steps."""
    # SyncBatchNorm, which would share the batch's statistics, runs on GPUs alone
    nn.BatchNorm1d = nn.BatchNorm2d = nn.Identity
    from ssl_fast.cli import main as ssl_fast
    from ssl_fast.train import callbacks, run
    from ssl_fast.train.methods import METHODS
    from ssl_fast.train.module import Pretraining

    if world > 1:
        os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{world}"}
        os.environ |= {"TORCHELASTIC_RUN_ID": "0", "GROUP_RANK": "0"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
        store = f"file://{folder}/store"
        dist.init_process_group("gloo", store, rank=rank, world_size=world)
    found: dict[str, dict[str, torch.Tensor]] = {}

    def keep(self: Pretraining) -> None:
        found[self.options.method] = {n: p.detach() for n, p in self.named_parameters()}

    Pretraining.on_train_end = keep
    run.finish = callbacks.Monitor._accuracy = lambda *arguments: 0.0
    for method in METHODS:
        more = ["--epochs", "1", "--devices", str(world), "--optimizer", "sgd", "--lr", "0.005"]
        if method == "swav":
            more += ["--swav.queue-length", "0"]
        assert ssl_fast(small_run(f"{folder}/{method}", method, *more)) == 0
        if world > 1:
            dist.barrier()
    torch.save(found, f"{folder}/{rank}.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
