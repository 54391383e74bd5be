"""Mean softmax and its gradient in CUDA C++."""

from types import SimpleNamespace

from torch import Tensor

from .. import matrix, pointer, stats, target
from . import cross_entropy, double, given_or_copied, gradient_like, launch, rows, scratch


def forward(logits: Tensor, inv_temperature: float, targets) -> tuple[Tensor, Tensor]:
    """As `reference.prior.forward`."""
    logits = rows(logits)
    given = SimpleNamespace(values=logits, scale=None, row=None, col=None)
    given = given if targets is None else targets
    row_stats = cross_entropy.forward(logits, inv_temperature, given, False, 1.0)[1]
    if targets is None:
        row_stats[2:].zero_()
    memory, log_mass = scratch("prior", logits), double(logits, logits.shape[1])
    launch(
        "prior_columns", logits, matrix(logits), inv_temperature, stats(row_stats),
        log_mass.data_ptr(), memory.data_ptr(),
    )  # fmt: skip
    return row_stats, log_mass


def backward(
    logits: Tensor,
    inv_temperature: float,
    targets,
    row_stats: Tensor,
    prior: Tensor,
    d_loss: Tensor | None,
    factor: float,
    out: Tensor | None = None,
) -> Tensor:
    """As `reference.prior.backward`."""
    d_logits = gradient_like(logits, out)
    logits = rows(logits)
    memory, values = scratch("prior", logits), cross_entropy.target_values(targets, logits)
    d_loss = None if d_loss is None else d_loss.float()
    launch(
        "prior_backward", logits, matrix(logits), inv_temperature, target(targets, values),
        stats(row_stats), prior.data_ptr(), pointer(d_loss), factor, matrix(d_logits),
        memory.data_ptr(),
    )  # fmt: skip
    return given_or_copied(d_logits, out)
