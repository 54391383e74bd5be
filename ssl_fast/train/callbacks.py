"""What happens between epochs: k-nn accuracy, a row of history, a checkpoint."""

import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from torch.utils.data import DataLoader

from . import evaluate


class Monitor(Callback):
    """k-nn accuracy of the encodings every few epochs and at the last; loss and rate at each.

    The rows are part of the checkpoint: a resumed run has one unbroken history.
    """

    def __init__(self, train: DataLoader, test: DataLoader, every: int, lines: bool) -> None:
        self.train, self.test, self.every, self.lines = train, test, every, lines
        self.rows: list[dict[str, float]] = []
        self.seconds = self._mark = 0.0
        self.losses: list[torch.Tensor] = []  # of this epoch

    def on_train_start(self, trainer, module) -> None:
        self._mark = time.perf_counter()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        each = trainer.accumulate_grad_batches  # Lightning has divided by it
        self.losses.append(outputs["loss"].detach() * each)

    def on_train_epoch_end(self, trainer, module) -> None:
        done = trainer.current_epoch + 1
        row = {"epoch": done, "step": trainer.global_step}
        row["loss"] = float(torch.stack(self.losses).double().mean())
        self.losses = []
        row["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        due = done % self.every == 0 or done == trainer.max_epochs
        if due and trainer.is_global_zero:
            row["knn"] = self._accuracy(module)
            module.log("knn", row["knn"], prog_bar=True, rank_zero_only=True)
        now = time.perf_counter()
        self.seconds, self._mark = self.seconds + now - self._mark, now
        self.rows.append(row | {"seconds": round(self.seconds, 3)})
        if "knn" in row and self.lines:
            print(
                f"epoch {done}/{trainer.max_epochs}  loss {row['loss']:.4f}  "
                f"k-nn {row['knn']:.1%}  {self.seconds:.0f} s",
                flush=True,
            )

    def _accuracy(self, module) -> float:
        encoder, _ = module.method.evaluated()
        features = evaluate.extract([encoder], self.train, self.test, module.device)[0]
        return evaluate.knn_accuracy(features)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "seconds": self.seconds, "losses": self.losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows, self.seconds, self.losses = state["rows"], state["seconds"], state["losses"]


class SaveOnTerm(Callback):
    """SIGTERM: `last.ckpt` after the step at hand; Lightning then ends the run."""

    def __init__(self, path: Path) -> None:
        self.path, self.asked = path, False

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        signals = trainer._signal_connector  # Lightning ends the run after any batch, if it is set
        self.asked |= signals.received_sigterm
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            signals.received_sigterm = False
            return
        if trainer.world_size > 1:
            self.asked = trainer.strategy.reduce_boolean_decision(self.asked, all=False)
        signals.received_sigterm = self.asked
        if self.asked and batch_idx + 1 < trainer.num_training_batches:  # else saved right after
            trainer.save_checkpoint(self.path)


class ProgressBar(RichProgressBar):
    """Loss and k-nn accuracy, without the logger's version."""

    def get_metrics(self, trainer, module):
        return {k: v for k, v in super().get_metrics(trainer, module).items() if k != "v_num"}


def checkpoint(run: Path) -> ModelCheckpoint:
    """`last.ckpt` after every epoch, replaced as a whole."""
    return ModelCheckpoint(
        run, "last", save_on_train_epoch_end=True, enable_version_counter=False, save_top_k=1
    )
