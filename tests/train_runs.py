"""Trainings of a second or two, of every method of the driver."""

import inspect

SMALL = {  # where a method has the option
    "hidden_dim": 32,
    "embedding_dim": 16,
    "prototypes": 20,
    "local_crops": 1,
    "focal_views": 1,
    "queue_length": 128,
    "queue_epoch": 0,
    "freeze_epochs": 0,
    "predictor_dim": 32,
    "whitening_size": 32,
    "clusters": "[5,8]",
    "first_epoch": 0,
    "decoder_dim": 32,
    "decoder_depth": 1,
    "decoder_heads": 2,
    "top_blocks": 2,
}
WIDE = {"cw_rgp": {"embedding_dim": 144, "hidden_dim": 256}}  # groups wider than the batch
COMMAND = (
    "train --data digits --batch-size 64 --threads 1 --accelerator cpu "
    "--progress off --warmup-epochs 0.2 --encoder small-4"
).split()


def small_run(folder, method: str, *more: str) -> list[str]:
    """Arguments of the command line."""
    from ssl_fast.train.methods import METHODS

    known = {
        name
        for parent in METHODS[method].__mro__
        if "__init__" in vars(parent)
        for name in inspect.signature(parent.__init__).parameters
    }
    small = SMALL | WIDE.get(method, {})
    own = [f"--{method}.{name}={value}" for name, value in small.items() if name in known]
    return [*COMMAND, "--method", method, *own, "--run-dir", str(folder), *more]
