"""`lightly.loss.ntx_ent_loss`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...functional._unit import unit_rows
from ...functional.contrastive import local_nt_xent, queue_info_nce
from ._common import as_lightly, check_gather, world
from .memory_bank import MemoryBankModule


class NTXentLoss(torch.nn.Module):
    """SimCLR's loss, or MoCo's with a memory bank, as Lightly's class of that name.

        loss = 1/(2N) sum_i -log( exp(u_i u_p(i) / T) / sum_{j != i} exp(u_i u_j / T) )
        with a bank: 1/N sum_i -log( exp(u_i v_i / T) / (exp(u_i v_i / T) + sum_b exp(u_i b / T)) )

    All rows are normalised here. The bank is read before out1 is taken in, which happens where
    out0 requires a gradient; out1 is not detached. Each process returns its own rows' loss.

    Args:
        temperature: T, not 0; negative ones are allowed.
        memory_bank_size: 0, or (number of features, width); see `MemoryBankModule`.
        gather_distributed: negatives of all processes; with a bank, it takes in those of all.
        strict: False: a batch that reaches the bank's end continues at its beginning, instead of
            losing its last rows.

    Source: lightly 1.6.0 and 1.5.26.
    """

    def __init__(
        self,
        temperature: float = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
        *,
        strict: bool = True,
    ):
        super().__init__()
        self.memory_bank = MemoryBankModule(memory_bank_size, gather_distributed, strict=strict)
        self.temperature = temperature
        self.gather_distributed = gather_distributed
        self.cross_entropy = torch.nn.CrossEntropyLoss(reduction="mean")  # for who looks at it
        self.eps = 1e-8
        if abs(self.temperature) < self.eps:
            raise ValueError(f"Illegal temperature: abs({self.temperature}) < 1e-8")
        check_gather("gather_distributed", gather_distributed)

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """The loss, 0-d, of two views (N, D)."""
        if self.memory_bank.size[0]:
            return as_lightly(self._with_bank(out0, out1), out0.dtype)
        group = world(self.gather_distributed)
        if group is None and len(out0) == len(out1) == 1:  # nothing to be told from: the loss is 0
            return (out0 * 0).sum() + (out1 * 0).sum()
        loss = local_nt_xent([out0, out1], temperature=self.temperature, group=group)
        return as_lightly(loss, out0.dtype)

    def _with_bank(self, out0: Tensor, out1: Tensor) -> Tensor:
        bank = self.memory_bank.features(out1).detach()
        query = out0 if self.temperature > 0 else -out0
        loss = queue_info_nce(query, out1, bank.to(out0.device), abs(self.temperature))
        if torch.is_grad_enabled() and out0.requires_grad:
            with torch.no_grad():
                self.memory_bank.enqueue(unit_rows(out1.detach()))
        return loss
