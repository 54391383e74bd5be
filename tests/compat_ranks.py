"""One rank of test_compat_distributed.py: `python compat_ranks.py RANK WORLD FOLDER`."""

import sys
import warnings

import torch
import torch.distributed as dist
from compat_cases import CASES, run

from ssl_fast.compat import lightly as ours

ROWS = 16
# Those with an option to gather, and those whose centers gather without being asked.
NAMES = [name for name, case in CASES.items() if case.gather or "output_dim" in case.options[0]]


def main(rank: int, world: int, folder: str) -> None:
    import lightly.loss as theirs

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # torch deprecates what Lightly calls
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    own = slice(rank * ROWS // world, (rank + 1) * ROWS // world)
    found = {}
    for name, case in CASES.items():
        if name not in NAMES or not hasattr(theirs, name):
            continue
        options = {**case.options[0], **({case.gather: True} if case.gather else {})}
        if name == "NTXentLoss":
            found["NTXentLoss, bank"] = outcomes(
                name, {**options, "memory_bank_size": (40, 24)}, own, theirs
            )
        found[name] = outcomes(name, options, own, theirs)
    found["MSNLoss, not strict"] = run(
        ours.MSNLoss, CASES["MSNLoss"], {"gather_distributed": True, "strict": False}, ROWS,
        torch.float32, own,
    )  # fmt: skip
    found["BarlowTwinsLoss, not strict"] = run(
        ours.BarlowTwinsLoss, CASES["BarlowTwinsLoss"],
        {"gather_distributed": True, "strict": False}, ROWS, torch.float32, own,
    )  # fmt: skip
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def outcomes(name: str, options: dict, own: slice, theirs) -> tuple:
    """Ours in float32, Lightly's in float32 and in float64."""
    case = CASES[name]
    return tuple(
        run(getattr(package, name), case, options, ROWS, dtype, own)
        for package, dtype in (
            (ours, torch.float32),
            (theirs, torch.float32),
            (theirs, torch.float64),
        )
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
