"""The training loop's hooks: loss of the method, optimiser, schedules, seeds."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, seed_everything
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from .config import TrainOptions
from .errors import UsageError
from .methods import Method
from .random import derive_seed


class Pretraining(LightningModule):
    def __init__(self, method: Method, options: TrainOptions) -> None:
        super().__init__()
        self.method, self.options = method, options

    def setup(self, stage: str) -> None:
        if self.trainer.world_size > 1:
            self.method.use_group(torch.distributed.group.WORLD)

    def on_train_epoch_start(self) -> None:
        """Whatever draws from the global generators repeats after a resume at this epoch."""
        parts = (self.options.seed, 2, self.current_epoch, self.global_rank)
        seed_everything(derive_seed(*parts) % 2**32, verbose=False)

    def training_step(self, views: list[torch.Tensor], _: int) -> torch.Tensor:
        progress = self.global_step / self.trainer.estimated_stepping_batches
        loss = self.method.loss(views, progress)
        if not torch.isfinite(loss):
            raise UsageError(
                f"the loss is {loss.item()} at step {self.global_step}: lower --lr, or use "
                "--precision 32-true; the last checkpoint is intact"
            )
        self.log("loss", loss, prog_bar=True, on_step=True, on_epoch=True, batch_size=len(views[0]))
        return loss

    def configure_optimizers(self) -> Any:
        o, total = self.options, int(self.trainer.estimated_stepping_batches)
        trained = [p for p in self.method.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(
            trained, o.lr, momentum=o.sgd_momentum, weight_decay=o.weight_decay
        )
        warmup = max(1, round(total * o.warmup_epochs / o.epochs))
        parts = [
            LinearLR(optimizer, start_factor=1e-2, total_iters=warmup),
            CosineAnnealingLR(optimizer, max(1, total - warmup), eta_min=o.lr_floor * o.lr),
        ]
        schedule = SequentialLR(optimizer, parts, milestones=[warmup])
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }
