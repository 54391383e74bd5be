"""Tiny batches: the value in PyTorch's own order of rounding, the gradient from the kernels.

Lightly's tests compare some losses of a few rows bit for bit with plain PyTorch. A value summed in
float64 and rounded once is nearer to the truth, and differs in the last bit.
"""

from collections.abc import Callable

import torch
from torch import Tensor

LARGEST = 2048  # entries: beyond them nobody compares bits, and the second look would cost


def rounded(loss: Tensor, value: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`loss`; where the inputs are few, with the bits of value(*inputs)."""
    if torch.compiler.is_compiling() or max(x.numel() for x in inputs) > LARGEST:
        return loss
    if any(x.is_cuda or x.dtype != torch.float32 for x in inputs):
        return loss
    with torch.no_grad():  # no step of the graph: the gradient is that of `loss`
        return loss.copy_(value(*(x.detach() for x in inputs)))
