"""What the tests of the Triton kernels share: checks against the reference, sizes, tables."""

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checks import normal, same_bits
from torch import Tensor

import ssl_fast.reference.contrastive
import ssl_fast.reference.cross_entropy
import ssl_fast.reference.prior
import ssl_fast.reference.sinkhorn  # noqa: F401
from ssl_fast import reference

FOLDER = Path(__file__).parents[1] / "triton_kernels"
STEMS = [p.stem for p in sorted(FOLDER.glob("*.py")) if "launch(" in p.read_text()]
STEMS.remove("_common")
SCALE = 20.0
# A rounding of 64 nats, the most that exponents in float32 span, a few of them in a row.
NATS = 3e-5
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
# One, odd, prime; more rows and more columns than a block of any table's entry.
SHAPES = [(1, 1), (1, 17), (7, 1), (67, 131)]
INTERPRETER = [
    pytest.mark.interpreter,
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") != "1",
        reason="Triton decides when it is imported: TRITON_INTERPRET=1 pytest -m interpreter",
    ),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # numpy, on lanes that are masked
    pytest.mark.usefixtures("poisoned"),
]


def scores(n: int, k: int, dtype: torch.dtype = torch.float32, size: float = 0.2) -> torch.Tensor:
    """Some 1.5 / epsilon = 30 nats from smallest to largest."""
    return (normal(n, k) * size).to(dtype)


def prior(k: int) -> torch.Tensor:
    """Its logarithm; every third prototype gets nothing."""
    weights = torch.arange(1, k + 1, dtype=torch.float64) * (torch.arange(k) % 3 != 1)
    return (weights / weights.sum()).log()


def kernels(stem: str) -> Any:
    return importlib.import_module(f"ssl_fast.triton_kernels.{stem}")


def assignment(**fields: Any) -> SimpleNamespace:
    """Targets as kernels see them."""
    names = ("values", "z", "prototypes", "scale", "row", "col")
    return SimpleNamespace(**{**dict.fromkeys(names), **fields})


def balanced(scores: Tensor) -> SimpleNamespace:
    """The assignment that Sinkhorn makes of scores."""
    row, col = reference.sinkhorn.potentials(scores.double(), SCALE, None, 2, False)
    return assignment(values=scores, scale=SCALE, row=row, col=col)


def factored(z: Tensor, prototypes: Tensor) -> tuple[SimpleNamespace, SimpleNamespace]:
    """The same of scores = z @ prototypes.T: as kernels see it, and with scores for the oracle."""
    exact = balanced(z.double() @ prototypes.double().T)
    given = assignment(**{**vars(exact), "values": None, "z": z, "prototypes": prototypes})
    return given, exact


def check_sinkhorn(scores: Tensor, log_prior: Tensor | None = None, iterations: int = 2) -> None:
    """Every function of the stem, from both starts."""
    ours, exact = kernels("sinkhorn"), reference.sinkhorn
    wide = scores.double()
    softmax = SCALE, log_prior, iterations, True
    _close(ours.potentials(scores, *softmax), exact.potentials(wide, *softmax), NATS)
    zero = SCALE, log_prior, iterations, False
    row, col = exact.potentials(wide, *zero)
    _close(ours.potentials(scores, *zero), (row, col), NATS)
    # An assignment moves by the error of its exponent.
    q, dense = exact.evaluate(wide, SCALE, row, col), ours.dense(scores, *zero)
    assert dense.dtype == torch.float32
    _close(dense, q, 1e-7, NATS)
    _close(ours.evaluate(scores, SCALE, row, col), q, 1e-7, NATS)
    _close(ours.step(scores, SCALE, None), exact.step(wide, SCALE, None), NATS)
    _close(ours.step(scores, SCALE, col), exact.step(wide, SCALE, col), NATS)
    row = exact.row_potential(wide, SCALE, None)
    _close(ours.row_potential(scores, SCALE, None), row, NATS)
    q = exact.evaluate(wide, SCALE, row, None)
    _close(ours.evaluate(scores, SCALE, row, None), q, 1e-7, NATS)


def check_cross_entropy(
    logits: Tensor,
    inv_temperature: float,
    targets: SimpleNamespace,
    symmetric: bool = False,
    d_loss: Tensor | None = None,
) -> None:
    """Forward and backward, in place too."""
    ours, exact = kernels("cross_entropy"), reference.cross_entropy
    wide = logits.double()
    actual = ours.forward(logits, inv_temperature, targets, symmetric, 0.5)
    expected = exact.forward(wide, inv_temperature, targets, symmetric, 0.5)
    _check_statistics(actual, expected, inv_temperature)
    gradient = (inv_temperature, targets, *actual[1:], d_loss, 0.5)
    d_logits = ours.backward(logits, *gradient)
    _check_gradient(
        d_logits, exact.backward(wide, inv_temperature, targets, *expected[1:], d_loss, 0.5)
    )
    buffer = logits.clone()
    assert ours.backward(buffer, *gradient, out=buffer) is buffer
    assert same_bits(buffer, d_logits)


def check_linear(
    x: Tensor,
    weight: Tensor,
    inv_temperature: float,
    targets: SimpleNamespace,
    exact_targets: SimpleNamespace | None = None,
    symmetric: bool = False,
    d_loss: Tensor | None = None,
) -> None:
    """Forward and backward from embeddings; `exact_targets` hold the scores of factored targets."""
    ours, exact = kernels("cross_entropy"), reference.cross_entropy
    logits = x.double() @ weight.double().T
    exact_targets = exact_targets or targets
    actual = ours.linear_forward(x, weight, inv_temperature, targets, symmetric, 0.5)
    expected = exact.forward(logits, inv_temperature, exact_targets, symmetric, 0.5)
    # A float32 product errs by some roundings of its largest logit.
    logit = 1e-6 * float(logits.abs().max()) * inv_temperature
    _check_statistics(actual, expected, inv_temperature, logit)
    d_x, d_weight = ours.linear_backward(
        x, weight, inv_temperature, targets, *actual[1:], d_loss, 0.5, True, True
    )
    d_logits = exact.backward(logits, inv_temperature, exact_targets, *expected[1:], d_loss, 0.5)
    _check_gradient(d_x, d_logits @ weight.double(), logit)
    _check_gradient(d_weight, d_logits.T @ x.double(), logit)


def check_contrast(
    x: Tensor,
    w: Tensor,
    scale: float,
    factors: tuple[Tensor | None, Tensor | None] = (None, None),
    without: tuple[Tensor | None, Tensor | None] = (None, None),
) -> None:
    """Rows against rows: log-sum-exps and both gradients."""
    ours, exact = kernels("contrastive"), reference.contrastive
    arguments = (*factors, scale, *without)
    lse, pull = ours.rows_forward(x, w, *arguments, True)
    expected, exact_pull = exact.rows_forward(x, w, *arguments, True)
    _close(lse, expected, NATS, 1e-6)
    _check_gradient(pull, exact_pull)
    weight = torch.rand(len(x), dtype=torch.float64)
    push = ours.rows_backward(x, w, *arguments, expected, weight)
    _check_gradient(push, exact.rows_backward(x, w, *arguments, expected, weight))


def check_pairs(z: Tensor, a: Tensor | None, scale: float, views: int) -> None:
    """Rows against themselves."""
    ours, exact = kernels("contrastive"), reference.contrastive
    lse = exact.pairs_forward(z, a, scale, views)
    rounding = 2e-7 * float(z.double().square().sum(1).max()) * scale if a is None else 0.0
    _close(ours.pairs_forward(z, a, scale, views), lse, NATS + rounding, 1e-6)
    blocks = torch.rand(len(z), views)
    expected = exact.pairs_backward(z, a, scale, views, lse, blocks)
    _check_gradient(ours.pairs_backward(z, a, scale, views, lse, blocks), expected, rounding)


def check_prior(
    logits: Tensor,
    inv_temperature: float,
    targets: SimpleNamespace | None,
    log_prior: Tensor | None = None,
    reverse: bool = False,
    d_loss: Tensor | None = None,
) -> None:
    """Forward and backward, in place too; the gradient is that of the divergence."""
    from ssl_fast.functional._prior import divergence

    ours, exact = kernels("prior"), reference.prior
    wide = logits.double()
    row_stats, log_mass = ours.forward(logits, inv_temperature, targets)
    exact_stats, exact_mass = exact.forward(wide, inv_temperature, targets)
    lse = [stats[0] * inv_temperature + stats[1] for stats in (row_stats, exact_stats)]
    _close(lse[0], lse[1], 1e-6, 1e-7)
    _close(row_stats[2], exact_stats[2], 1e-7, NATS)
    _close(log_mass, exact_mass, NATS, 1e-7)
    prior = divergence(exact_mass, len(logits), log_prior, reverse, 2.0)[1]
    gradient = (inv_temperature, targets, row_stats, prior, d_loss, 0.5)
    d_logits = ours.backward(logits, *gradient)
    expected = exact.backward(wide, inv_temperature, targets, exact_stats, prior, d_loss, 0.5)
    _check_gradient(d_logits, expected)
    buffer = logits.clone()
    assert ours.backward(buffer, *gradient, out=buffer) is buffer
    assert same_bits(buffer, d_logits)


def _check_statistics(
    actual: tuple, expected: tuple, inv_temperature: float, logit: float = 0.0
) -> None:
    """`logit` is what a logit itself may be off by, in nats."""
    loss, row_stats, col_stats = actual
    assert loss.dtype == torch.float32
    assert (col_stats is None) == (expected[2] is None)
    for ours, exact in ((row_stats, expected[1]), (col_stats, expected[2])):
        if ours is not None:
            assert ours.dtype == torch.float64
            lse = [stats[0] * inv_temperature + stats[1] for stats in (ours, exact)]
            _close(lse[0], lse[1], 1e-6 + logit, 1e-7)
            _close(ours[2], exact[2], 1e-7, NATS)
    size = float(expected[1][2:].abs().max())
    _close(row_stats[3], expected[1][3], (NATS + logit) * size, NATS)
    _close(loss.double(), expected[0].double(), (NATS + logit) * size * len(row_stats[3]), NATS)


def _check_gradient(actual: Tensor, exact: Tensor, logit: float = 0.0) -> None:
    # The interpreter truncates to bfloat16: one unit in the last place, not half.
    rounding = torch.finfo(actual.dtype).eps * (1 if actual.is_cuda else 2)
    scale = float(exact.abs().max())
    _close(actual.double(), exact.double(), (NATS + 2 * logit) * scale + 1e-7 * scale, rounding)


def _close(actual: Any, expected: Any, atol: float, rtol: float = 0.0) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=rtol, check_dtype=False)


def single_entry_tables() -> Iterator[tuple[Any, str, Any]]:
    """(module, name, the table with one entry only) for every entry of every tuning table."""
    for stem in STEMS:
        for name, table in vars(kernels(stem)).items():
            if not name.isupper():
                continue
            if isinstance(table, tuple):
                yield from ((kernels(stem), name, (entry,)) for entry in table)
            if isinstance(table, dict):
                for size, entries in table.items():
                    if isinstance(entries, tuple):
                        yield from (
                            (kernels(stem), name, {**table, size: (entry,)}) for entry in entries
                        )
