"""The Triton kernels on a GPU: what the interpreter cannot show (tensor cores, races, graphs)."""

import pytest
import torch
from checks import normal, probabilities, same_bits
from triton_harness import (
    SCALE,
    assignment,
    balanced,
    check_cross_entropy,
    check_linear,
    check_sinkhorn,
    factored,
    kernels,
)

import ssl_fast.reference.sinkhorn
from ssl_fast import reference

pytest.importorskip("triton")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
# One, odd, prime, and more programs than multiprocessors.
SHAPES = [(1, 1), (7, 13), (257, 3001), (4096, 3000), (100, 20011)]


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.empty gives NaN; the deterministic mode of conftest's fixture forbids cuBLAS here."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))


def scores(n: int, k: int, dtype: torch.dtype = torch.float32, size: float = 0.2) -> torch.Tensor:
    return (normal(n, k) * size).to(dtype).cuda()


def targets(n: int, k: int, dtype: torch.dtype = torch.float32):
    return assignment(values=probabilities(n, k, seed=1).to(dtype).cuda())


@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sinkhorn(shape, dtype):
    check_sinkhorn(scores(*shape, dtype))


@pytest.mark.parametrize("size", [30.0, 1e4], ids=str)
def test_sinkhorn_of_large_scores(size):
    weights = torch.arange(3001, dtype=torch.float64, device="cuda")  # the first gets nothing
    check_sinkhorn(scores(257, 3001, size=size), (weights / weights.sum()).log())


@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cross_entropy(shape, dtype):
    logits = (normal(*shape) * 5).to(dtype).cuda()
    check_cross_entropy(logits, 2.5, targets(*shape, dtype))
    d_loss = torch.rand(shape[0], device="cuda")
    check_cross_entropy(logits, 2.5, balanced(scores(*shape, dtype)), d_loss=d_loss)


@pytest.mark.parametrize("n", [1, 61, 1024])
def test_symmetric_cross_entropy(n):
    logits = (normal(n, n) * 5).cuda()
    check_cross_entropy(logits, 2.5, balanced(scores(n, n)), True, torch.rand(n, device="cuda"))


# Every entry of the tables of embeddings, by width.
@dtypes
@pytest.mark.parametrize("width", [1, 32, 64, 100, 128, 200, 256, 300, 512])
def test_linear_cross_entropy(width, dtype):
    n, k = 301, 1031
    x, weight = (normal(n, width) / width**0.5).to(dtype).cuda(), normal(k, width).to(dtype).cuda()
    d_loss = torch.rand(n, device="cuda")
    check_linear(x, weight, 10.0, targets(n, k, dtype), d_loss=d_loss)
    z = (normal(n, width, seed=2) / (5 * width**0.5)).to(dtype).cuda()
    prototypes = normal(k, width, seed=3).to(dtype).cuda()
    check_linear(x, weight, 10.0, *factored(z, prototypes), d_loss=d_loss)


@dtypes
def test_symmetric_linear_cross_entropy(dtype):
    n = 515
    x, weight = (normal(n, 128) / 11).to(dtype).cuda(), normal(n, 128, seed=1).to(dtype).cuda()
    check_linear(x, weight, 5.0, balanced(scores(n, n)), symmetric=True)


def test_bitwise_repeatable():
    x, weight = normal(1000, 256).bfloat16().cuda(), normal(5003, 256, seed=1).bfloat16().cuda()
    values = scores(1000, 5003)
    target = balanced(values)

    def outputs():
        stats = kernels("cross_entropy").linear_forward(x, weight, 0.1, target, False, 1.0)[1]
        gradients = kernels("cross_entropy").linear_backward(
            x, weight, 0.1, target, stats, None, None, 1.0, True, True
        )
        return kernels("sinkhorn").dense(values, SCALE, None, 3, False), stats, *gradients

    first = outputs()
    for _ in range(5):
        assert all(same_bits(a, b) for a, b in zip(first, outputs(), strict=True))


def test_no_synchronisation_and_a_graph():
    values, logits = scores(256, 1000), normal(256, 1000).cuda()
    target = balanced(values)

    def work():
        q = kernels("sinkhorn").dense(values, SCALE, None, 3, False)
        loss, stats, _ = kernels("cross_entropy").forward(logits, 2.0, target, False, 1.0)
        return (
            q,
            loss,
            kernels("cross_entropy").backward(logits, 2.0, target, stats, None, None, 1.0),
        )

    expected = work()
    torch.cuda.set_sync_debug_mode("error")
    try:
        work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    graph.replay()
    assert all(same_bits(a, b) for a, b in zip(expected, captured, strict=True))


@pytest.mark.slow
def test_more_than_two_to_the_31_elements():
    """Offsets are 64 bits: the last rows against the reference."""
    n, k = 70_000, 32_768
    if torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("needs 40 GB of GPU memory")
    values = torch.randn(n, k, dtype=torch.bfloat16, device="cuda").mul_(0.2)
    row, col = kernels("sinkhorn").potentials(values, SCALE, None, 1, False)
    tail = values[-8:]
    expected = reference.sinkhorn.row_potential(tail, SCALE, col)
    torch.testing.assert_close(row[-8:], expected, atol=3e-5, rtol=0)
    target = assignment(values=values, scale=SCALE, row=row, col=col)
    stats = kernels("cross_entropy").forward(values, 2.0, target, False, 1.0)[1]
    d_logits = kernels("cross_entropy").backward(values, 2.0, target, stats, None, None, 1.0)
    target = assignment(values=tail, scale=SCALE, row=row[-8:], col=col)
    expected = ssl_fast.reference.cross_entropy.backward(
        tail, 2.0, target, stats[:, -8:], None, None, 1.0
    )
    torch.testing.assert_close(d_logits[-8:], expected, atol=1e-7, rtol=2**-8)
