"""`lightly.models.modules.memory_bank`: a queue of normalised features."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...functional._distributed import gather
from ._common import version, warn, world


class MemoryBankModule(torch.nn.Module):
    """The last `size[0]` features, first in, first out; none for size 0.

    Args:
        size: 0, or (number of features, width). A number alone is an error in Lightly 1.6; before,
            and without a Lightly installed, the width is taken from the first batch.
        gather_distributed: take in the batches of all processes.
        feature_dim_first: hand out (width, number) rather than (number, width).
        strict: as in Lightly, a batch that reaches the end is cut there, and the next starts
            anew; False writes the rest at the beginning.

    The buffers `bank` and `bank_ptr` are not part of the state dict.
    """

    bank: Tensor
    bank_ptr: Tensor

    def __init__(
        self,
        size: int | Sequence[int],
        gather_distributed: bool = False,
        feature_dim_first: bool = True,
        *,
        strict: bool = True,
    ):
        super().__init__()
        self.size = _checked(size)
        self.gather_distributed = gather_distributed
        self.feature_dim_first = feature_dim_first
        self._strict = strict
        self.register_buffer("bank", torch.empty(self.size), persistent=False)
        self.register_buffer("bank_ptr", torch.empty(1, dtype=torch.long), persistent=False)
        if len(self.size) > 1:
            self._fill(self.size)

    def forward(
        self, output: Tensor, labels: Tensor | None = None, update: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """The output as it is, and a copy of the features kept before it; None for size 0.

        Args:
            output: (N, width).
            labels: ignored.
            update: take the output in.
        """
        if self.size[0] == 0:
            return output, None
        bank = self.features(output).clone()
        if update:
            self.enqueue(output)
        return output, bank.transpose(0, -1) if self.feature_dim_first else bank

    def features(self, like: Tensor) -> Tensor:
        """(number, width), drawn at random where no size was known before `like` (N, width)."""
        if self.bank.dim() == 1:
            self._fill((*self.size, *like.shape[1:]))
        return self.bank

    @torch.no_grad()
    def enqueue(self, batch: Tensor) -> None:
        """Overwrite the oldest features; on a GPU, and when traced, without looking at numbers."""
        group = world(self.gather_distributed)
        if group is not None:
            batch = gather(batch.contiguous(), group.group_name)
        size = self.size[0]
        batch = batch.detach()[:size] if self._strict else batch.detach()[-size:]
        if self.bank.device.type == "cpu" and not torch.compiler.is_compiling():
            first = int(self.bank_ptr)
            room = min(len(batch), size - first)
            self.bank[first : first + room] = batch[:room]
            if not self._strict:
                self.bank[: len(batch) - room] = batch[room:]
            self.bank_ptr.fill_(self._after(first + len(batch)))
            return
        places = self.bank_ptr + torch.arange(len(batch), device=self.bank.device)
        rows, batch = places % size, batch.to(self.bank.dtype)
        if self._strict:
            batch = torch.where((places < size)[:, None], batch, self.bank[rows])
        self.bank.index_copy_(0, rows, batch)
        after = self.bank_ptr + len(batch)
        beyond = torch.zeros_like(after) if self._strict else after - size
        self.bank_ptr.copy_(torch.where(after >= size, beyond, after))

    def _after(self, last: int) -> int:
        if last < self.size[0]:
            return last
        return 0 if self._strict else last - self.size[0]

    @torch.no_grad()
    def _fill(self, size: tuple[int, ...]) -> None:
        rows = torch.randn(size).type_as(self.bank)
        self.bank = torch.nn.functional.normalize(rows, dim=-1)
        self.bank_ptr = torch.zeros(1).type_as(self.bank_ptr)


def _checked(size: int | Sequence[int]) -> tuple[int, ...]:
    sizes = (size,) if isinstance(size, int) else tuple(size)
    if any(x < 0 for x in sizes):
        raise ValueError(f"Illegal memory bank size {size}, all entries must be non-negative.")
    if isinstance(size, int) and size > 0:
        if (version() or (1, 5)) >= (1, 6):
            raise ValueError(
                f"Memory bank size 'size={size}' does not specify the feature dimension. Set it "
                f"with 'size=({size}, dim)', or pass 'size=0' to disable the memory bank."
            )
        warn(
            f"Memory bank size 'size={size}' does not specify feature dimension. It is recommended "
            "to set the feature dimension with 'size=(n, dim)' when creating the memory bank. "
            "Distributed training might fail if the feature dimension is not set."
        )
    elif sizes != (0,) and len(sizes) != 2:
        raise ValueError(
            f"Illegal memory bank size {size}, expected a (num_features, dim) tuple, or 'size=0' "
            "to disable the memory bank."
        )
    return sizes
