"""The training loop's hooks: loss of the method, auxiliary term, optimiser, schedules, seeds."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, seed_everything
from torch import Tensor

from .config import TrainOptions
from .errors import UsageError
from .methods import Batch, Method
from .methods.base import Encodings, MomentumNetwork
from .optimizers import build_optimizer, build_schedule
from .random import derive_seed
from .schedules import anneal, uniformity_weight


class Pretraining(LightningModule):
    """`encodings` runs a network over the training images, for methods that cluster them."""

    def __init__(
        self, method: Method, options: TrainOptions, encodings: Encodings | None = None
    ) -> None:
        super().__init__()
        self.method, self.options, self.encodings = method, options, encodings
        self.uniformity = None
        if options.uniformity == "w2":
            from ..losses import WassersteinUniformityLoss

            self.uniformity = WassersteinUniformityLoss()

    def setup(self, stage: str) -> None:
        if self.options.threads:  # which Lightning has set by its processes
            torch.set_num_threads(self.options.threads)
        if self.trainer.world_size > 1:
            self.method.use_group(torch.distributed.group.WORLD)
            if self.uniformity is not None:
                self.uniformity.group = torch.distributed.group.WORLD

    def on_train_epoch_start(self) -> None:
        parts = (self.options.seed, 2, self.current_epoch, 0)
        seed_everything(derive_seed(*parts) % 2**32, verbose=False)
        if self.encodings is not None:
            self.method.start_epoch(self.current_epoch, self.encodings)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Whatever draws from the global generators repeats after a resume at this step.

        All processes draw alike: of what belongs to an image each takes its own (Batch.uniform).
        """
        each = self.options.accumulate_grad_batches
        gathered = batch_idx % each  # batches of this step, before this one
        number = self.global_step * each + gathered
        torch.manual_seed(derive_seed(self.options.seed, 4, number, 0))
        for module in self.method.modules():
            if isinstance(module, MomentumNetwork):
                module.held = gathered > 0

    def training_step(self, batch: tuple[list[Tensor], Tensor], _: int) -> Tensor:
        views, index = batch
        steps = int(self.trainer.estimated_stepping_batches)
        place = self.trainer.world_size, self.global_rank
        now = Batch(views, index, self.global_step, steps, self.options.epochs, *place)
        try:
            out = self.method.loss(now)
        except ValueError as error:  # what a loss says of a batch, such as one that collapsed
            raise UsageError(f"step {self.global_step}: {error}") from error
        loss = out.loss
        if self.uniformity is not None:
            w2 = self.uniformity(*out.projections[:2])
            loss = loss + self.uniformity_weight() * w2
            self.log("w2", w2.detach(), batch_size=len(index))
        if not torch.isfinite(loss):
            raise UsageError(
                f"the loss is {loss.item()} at step {self.global_step}: lower --lr, or use "
                "--precision 32-true; the last checkpoint is intact"
            )
        self.log("loss", loss, prog_bar=True, on_step=True, on_epoch=True, batch_size=len(index))
        for name, value in out.logs.items():
            self.log(name, value, batch_size=len(index))
        return loss

    def uniformity_weight(self) -> float:
        o = self.options
        return uniformity_weight(
            o.uniformity_weight, self.current_epoch + 1, o.epochs, o.uniformity_decay
        )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.method.before_update(self.global_step)
        o = self.options
        if o.weight_decay_end is not None:
            progress = self.global_step / self.trainer.estimated_stepping_batches
            decay = anneal(o.weight_decay, o.weight_decay_end, progress)
            for group in optimizer.param_groups:
                if group["weight_decay"]:
                    group["weight_decay"] = decay

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.method, self.options)
        total = int(self.trainer.estimated_stepping_batches)
        schedule = build_schedule(optimizer, self.options, total)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }
