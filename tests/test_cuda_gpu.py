"""The CUDA C++ kernels on a GPU, against the float64 reference.

The same questions as the emulated tests ask, at sizes that fill a GPU: rows wider than a block's
registers, matrices on and off the chip.
"""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from ssl_fast import native
from ssl_fast.native.cuda import cross_entropy, sinkhorn
from ssl_fast.reference import cross_entropy as cross_entropy_reference
from ssl_fast.reference import sinkhorn as sinkhorn_reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

TOLERANCE = 4e-6  # half a unit in the last place of a float32 exponent of 64 nats
SHAPES = [(1, 1), (3, 1031), (97, 128), (1024, 3000), (300, 9001), (257, 8192), (130, 65536)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
PAIRS = [(a, a) for a in DTYPES] + [(a, torch.float32) for a in DTYPES[1:]]


@pytest.fixture(autouse=True)
def poisoned():
    """The kernels must be there, and fresh tensors are full of NaN."""
    assert native.why_not("cuda") is None
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


def random(*shape: int, dtype=torch.float32, size: float = 1.0, seed: int = 0) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return (size * torch.randn(shape, generator=generator, device="cuda")).to(dtype)


def strided(tensor: Tensor, gap: int = 16) -> Tensor:
    """The same values in rows further apart, NaN between them."""
    rows, columns = tensor.shape
    wide = tensor.new_full((rows, columns + gap), math.nan)
    wide[:, :columns] = tensor
    return wide[:, :columns]


def prior_with_zeros(columns: int) -> Tensor:
    prior = torch.arange(columns, dtype=torch.float64, device="cuda") % 5
    return (prior / prior.sum()).log() if columns > 1 else prior.new_zeros(1)


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Within `tolerance` of the largest expected value."""
    error = (actual.double() - expected.double()).abs().max()
    assert error <= tolerance * max(1e-30, float(expected.abs().max())), float(error)


@pytest.mark.parametrize("on_chip", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("dtype", "size", "softmax_start"),
    [
        (torch.float32, 1.0, False),
        (torch.float32, 1e4, True),
        (torch.bfloat16, 1.0, True),
        (torch.float16, 1e3, False),
    ],
)
def test_sinkhorn(shape, dtype, size, softmax_start, on_chip):
    scores = strided(random(*shape, dtype=dtype, size=size))
    arguments = (scores, 5.0, prior_with_zeros(shape[1]), 3, softmax_start)
    q = torch.empty(shape, device="cuda")
    row, col, ran_on_chip = sinkhorn.run(*arguments, q, on_chip)
    if not on_chip:
        assert not ran_on_chip
    elif shape[1] <= 8192 and math.prod(shape) * scores.element_size() < 2**23:
        assert ran_on_chip
    expected_row, expected_col = sinkhorn_reference.potentials(*arguments)
    torch.testing.assert_close(row, expected_row, rtol=1e-12, atol=TOLERANCE)
    torch.testing.assert_close(col, expected_col, rtol=1e-12, atol=TOLERANCE)
    assert_near(q, sinkhorn_reference.dense(scores.double(), *arguments[1:]), TOLERANCE)
    again = sinkhorn.run(*arguments, None, on_chip)
    assert torch.equal(again[1], col)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1.0, 1e4])
@pytest.mark.parametrize("start", [True, False])
def test_step_row_potential_and_evaluate(shape, size, start):
    scores = strided(random(*shape, size=size))
    col = None if start else random(shape[1], size=3).double() - 5 * size
    row, column_lse = sinkhorn.step(scores, 5.0, col)
    expected_row, expected_lse = sinkhorn_reference.step(scores, 5.0, col)
    torch.testing.assert_close(row, expected_row, rtol=1e-12, atol=TOLERANCE)
    torch.testing.assert_close(column_lse, expected_lse, rtol=1e-12, atol=TOLERANCE)
    row = sinkhorn.row_potential(scores, 5.0, col)
    expected_row = sinkhorn_reference.row_potential(scores, 5.0, col)
    torch.testing.assert_close(row, expected_row, rtol=1e-12, atol=TOLERANCE)
    expected = sinkhorn_reference.evaluate(scores.double(), 5.0, row, col)
    assert_near(sinkhorn.evaluate(scores, 5.0, row, col), expected, TOLERANCE)


def make_targets(shape, dtype, kind: str) -> SimpleNamespace:
    values = strided(random(*shape, dtype=dtype, seed=7), gap=32)
    if kind == "dense":
        return SimpleNamespace(values=values, scale=None, row=None, col=None)
    row, col = sinkhorn_reference.potentials(values, 10.0, prior_with_zeros(shape[1]), 3, False)
    return SimpleNamespace(values=values, scale=10.0, row=row, col=col)


@pytest.mark.parametrize("kind", ["dense", "sinkhorn"])
@pytest.mark.parametrize(("dtype", "target_dtype"), PAIRS)
@pytest.mark.parametrize("size", [1.0, 1e4])
@pytest.mark.parametrize(
    ("shape", "symmetric"),
    [
        ((1, 1), True),
        ((1021, 1021), True),
        ((1024, 1024), True),
        ((70, 65536), False),
        ((4096, 3000), False),
        ((513, 131), False),
    ],
)
def test_cross_entropy(shape, symmetric, size, dtype, target_dtype, kind):
    logits = strided(random(*shape, dtype=dtype, size=size, seed=3))
    targets = make_targets(shape, target_dtype, kind)
    arguments = (logits, 7.0, targets, symmetric, 1 / shape[0])
    expected, expected_rows, _ = cross_entropy_reference.forward(*arguments)
    loss, rows, cols = cross_entropy.forward(*arguments)
    assert_near(loss[None], expected[None], TOLERANCE)
    for i in (2, 3):
        assert_near(rows[i], expected_rows[i], TOLERANCE)
    d_loss = random(shape[0], seed=5)
    exact = cross_entropy_reference.backward(
        logits.double(), 7.0, targets, rows, cols, d_loss, 1 / shape[0]
    )
    actual = cross_entropy.backward(logits, 7.0, targets, rows, cols, d_loss, 1 / shape[0])
    rounding = {torch.float32: TOLERANCE, torch.bfloat16: 2**-8, torch.float16: 2**-10}
    assert_near(actual, exact, rounding[dtype])
    again = cross_entropy.forward(*arguments)
    assert torch.equal(again[0], loss) and torch.equal(again[1], rows)


@pytest.mark.parametrize("shape", [(512, 512), (4096, 4096)])
def test_captured_in_a_graph(shape):
    scores, logits = random(*shape), random(*shape, seed=1)

    def work() -> tuple[Tensor, Tensor]:
        row, col = sinkhorn.potentials(scores, 20.0, None, 3, False)
        targets = SimpleNamespace(values=scores, scale=20.0, row=row, col=col)
        loss, rows, cols = cross_entropy.forward(logits, 10.0, targets, True, 1.0)
        return loss, cross_entropy.backward(logits, 10.0, targets, rows, cols, None, 1.0)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    scores.copy_(random(*shape, seed=2))
    graph.replay()
    for actual, expected in zip(captured, work(), strict=True):
        assert torch.equal(actual, expected)


def test_more_than_two_to_the_31_elements():
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of free GPU memory")
    n, k = 2**18 + 3, 8200
    scores = torch.empty(n, k, dtype=torch.float16, device="cuda")
    scores[:] = random(1, k, dtype=torch.float16)
    scores[-5:] = random(5, k, dtype=torch.float16, seed=9)
    row, col = sinkhorn.potentials(scores, 5.0, None, 2, False)
    tail = sinkhorn.evaluate(scores[-5:], 5.0, row[-5:], col)
    expected = sinkhorn_reference.evaluate(scores[-5:].double(), 5.0, row[-5:], col)
    assert_near(tail, expected, TOLERANCE)
    torch.testing.assert_close(tail.sum(1), torch.ones(5, device="cuda"), rtol=0, atol=1e-5)
