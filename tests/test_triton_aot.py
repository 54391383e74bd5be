"""Every Triton kernel to a cubin for sm_80, sm_90 and sm_100, on a machine without any of them.

The launches are those that the public launchers make for tensors on the meta device: what is
compiled here is what would run there.
"""

import multiprocessing
import os
import re
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch
from triton_harness import SCALE, assignment, kernels
from triton_launches import Launch, recorded

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels are not compiled"
    ),
]
triton = pytest.importorskip("triton")
# Triton 3.6 spills more, and multiplies tiles of 32 columns without tensor cores on sm_100.
RECENT = tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 9)
# Most shared memory of a block, bytes (CUDA programming guide, table of compute capabilities).
SHARED = {80: 166912, 90: 232448, 100: 232448}
TENSOR_CORE = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
# Bytes of a thread's stack, that is of spilled registers: streaming kernels, products, and those in
# float16, which scale each row of d_logits.
STACK = {80: (64, 640, 640), 90: (0, 64, 640), 100: (0, 256, 640)}
HALF = torch.bfloat16, torch.float16
SINGLE = torch.float32


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def potential(size: int) -> torch.Tensor:
    return meta(size, dtype=torch.float64)


def dense_targets(n: int, k: int, dtype: torch.dtype):
    return assignment(values=meta(n, k, dtype=dtype))


def scored_targets(n: int, k: int, dtype: torch.dtype):
    values = meta(n, k, dtype=dtype)
    return assignment(values=values, scale=SCALE, row=potential(n), col=potential(k))


def usual(dtype: torch.dtype) -> None:
    """The calls of every training step."""
    sinkhorn, cross_entropy = kernels("sinkhorn"), kernels("cross_entropy")
    scores = meta(4096, 3000, dtype=dtype)
    sinkhorn.dense(scores, SCALE, None, 3, False)
    sinkhorn.potentials(scores, SCALE, potential(3000), 3, False)
    targets = scored_targets(4096, 3000, dtype)
    stats = cross_entropy.forward(scores, 10.0, targets, False, 1.0)[1]
    cross_entropy.backward(scores, 10.0, targets, stats, None, meta(), 1.0)
    sinkhorn.evaluate(scores, SCALE, potential(4096), potential(3000))
    prior_term(scores, targets)
    wasserstein(dtype, 1024, 512)


def prior_term(logits: torch.Tensor, targets, d_loss: torch.Tensor | None = None) -> None:
    prior, out = kernels("prior"), meta(2, logits.shape[1], dtype=torch.float64)
    stats, _ = prior.forward(logits, 10.0, targets)
    prior.backward(logits, 10.0, targets, stats, out, d_loss, 1.0)


def wasserstein(dtype: torch.dtype, n: int, d: int) -> None:
    """The updates between the products of the polar iteration."""
    updates, gram = kernels("wasserstein"), potential_matrix(d, d)
    z = meta(n, d, dtype=dtype)
    updates.column_sums(z)
    for mean in (None, potential(d)):
        updates.center(z, mean)
    updates.polynomial((8.5, -25.2, 18.7), gram, gram)
    updates.finish(potential_matrix(n, d), None, None)
    updates.finish(potential_matrix(n, d), potential(d), meta(dtype=torch.float64))


def potential_matrix(n: int, k: int) -> torch.Tensor:
    return meta(n, k, dtype=torch.float64)


def unusual(dtype: torch.dtype) -> None:
    """Every other specialisation and every other entry of the tables."""
    sinkhorn, cross_entropy = kernels("sinkhorn"), kernels("cross_entropy")
    scores = meta(4096, 3000, dtype=dtype)
    sinkhorn.potentials(scores, SCALE, None, 2, True)
    sinkhorn.step(scores, SCALE, None)
    sinkhorn.step(scores, SCALE, potential(3000))
    sinkhorn.evaluate(scores, SCALE, potential(4096), None)
    wasserstein(dtype, 40, 48)
    for columns in (64, 16000, 65536):
        sinkhorn.dense(meta(256, columns, dtype=dtype), SCALE, None, 1, False)
    for n, d_loss in ((128, None), (1024, meta(1024))):
        logits, targets = meta(n, n, dtype=dtype), dense_targets(n, n, dtype)
        _, rows, columns = cross_entropy.forward(logits, 10.0, targets, True, 1.0)
        cross_entropy.backward(logits, 10.0, targets, rows, columns, d_loss, 1.0)
    prior_term(scores, None, meta())
    prior_term(meta(128, 128, dtype=dtype), dense_targets(128, 128, dtype))


def smallest() -> None:
    """Sizes and strides of 1, which Triton turns into constants."""
    sinkhorn, cross_entropy = kernels("sinkhorn"), kernels("cross_entropy")
    one = meta(1, 1)
    wasserstein(SINGLE, 1, 1)
    sinkhorn.dense(one, SCALE, None, 2, False)
    for targets in (dense_targets(1, 1, SINGLE), scored_targets(1, 1, SINGLE)):
        _, rows, columns = cross_entropy.forward(one, 10.0, targets, True, 1.0)
        cross_entropy.backward(one, 10.0, targets, rows, columns, meta(1), 1.0)
        prior_term(one, targets, meta())
        cross_entropy.linear_forward(one, one, 10.0, targets, True, 1.0)
        cross_entropy.linear_backward(
            one, one, 10.0, targets, rows, columns, meta(1), 1.0, True, True
        )


def linear(dtype: torch.dtype, widths: tuple[int, ...]) -> None:
    """From embeddings: targets by value at one width, in factors at the next."""
    cross_entropy = kernels("cross_entropy")
    n, k = 8192, 65536
    for i, d in enumerate(widths):
        x, weight = meta(n, d, dtype=dtype), meta(k, d, dtype=dtype)
        targets = scored_targets(n, k, dtype)
        if i % 2:
            z, prototypes = meta(n, d // 2, dtype=dtype), meta(k, d // 2, dtype=dtype)
            targets = assignment(
                **{**vars(targets), "values": None, "z": z, "prototypes": prototypes}
            )
        stats = cross_entropy.linear_forward(x, weight, 10.0, targets, False, 1.0)[1]
        cross_entropy.linear_backward(
            x, weight, 10.0, targets, stats, None, meta(), 1.0, True, False
        )


def column_gradient(dtype: torch.dtype) -> None:
    """d_weight, symmetric, with one upstream gradient a row."""
    n, d = 1024, 128
    x, targets = meta(n, d, dtype=dtype), dense_targets(n, n, dtype)
    cross_entropy = kernels("cross_entropy")
    _, rows, columns = cross_entropy.linear_forward(x, x, 10.0, targets, True, 1.0)
    cross_entropy.linear_backward(x, x, 10.0, targets, rows, columns, meta(n), 1.0, False, True)


def contrastive(dtype: torch.dtype, widths: tuple[int, ...]) -> None:
    """NT-Xent, a queue, and both gradients with left-out ranges."""
    module, n, k = kernels("contrastive"), 8192, 65536
    for d in widths:
        x, w = meta(n, d, dtype=dtype), meta(k, d, dtype=dtype)
        module.rows_forward(x, w, meta(n), None, 5.0, None, None, True)
        ranges = (meta(n, dtype=torch.int64), meta(n, dtype=torch.int64))
        lse, _ = module.rows_forward(x, w, meta(n), meta(k), 5.0, *ranges, False)
        module.rows_backward(x, w, meta(n), meta(k), 5.0, *ranges, lse, potential(n))
        lse = module.pairs_forward(x, meta(n), 5.0, 2)
        module.pairs_backward(x, meta(n), 5.0, 2, lse, meta(n, 2))


def covariances(dtype: torch.dtype, n: int = 1024, d: int = 4096) -> None:
    """Every kernel of both stems, on views (n, d) with the products in float32."""
    stem = kernels("covariance")
    z, wide, gram = meta(n, d, dtype=dtype), meta(n, d), meta(n, n)
    stats, factors, flag = meta(2, d, dtype=torch.float64), potential(2), meta(dtype=torch.bool)
    mean, beta = stats
    stem.moments(z, stats, wide, 1e-5)
    stem.center(z, mean, None, wide)
    stem.inner(gram, gram)
    stem.squared_distance(z, z)
    stem.triangle(meta(128, d), 0.1)
    stem.off_diagonal_squares(z, mean, 0.1, flag)
    stem.rescue_gradient(z, z, None, mean, beta, factors, flag, wide)
    for push, other in ((wide, z), (None, z), (wide, None)):
        stem.gradient(push, z, other, mean, beta, factors, z)
    stem = kernels("cross_correlation")
    stem.penalty(meta(256, d), 256, n, 5e-3)
    for other, column in ((wide, beta), (None, None)):
        stem.dots(wide, wide, other, 0.5, column)
        stem.gradient(wide, wide, other, 0.5, column, mean, beta, wide)


def launches(capability: int) -> list[Launch]:
    """The usual in every dtype on every GPU; what is rarer in bfloat16 for sm_90."""
    with recorded() as found:
        for dtype in (*HALF, SINGLE) if capability == 90 else (torch.bfloat16, SINGLE):
            usual(dtype)
        column_gradient(torch.bfloat16)
        covariances(torch.bfloat16)
        linear(torch.bfloat16, (64, 128, 256, 512))
        linear(torch.float16, (256,))
        linear(SINGLE, (64, 128))
        contrastive(torch.bfloat16, (128,))
        contrastive(SINGLE, (128,))
        if capability == 90:
            covariances(torch.float16, 64, 128)
            covariances(SINGLE)
            unusual(torch.bfloat16)
            smallest()
            column_gradient(SINGLE)
            linear(torch.float16, (64, 128, 256, 512))
            contrastive(torch.float16, (256, 512))
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("capability", SHARED)
def test_kernels_compile(capability):
    global _todo
    _todo = [(launch, capability) for launch in launches(capability)]
    assert len({launch.kernel.fn for launch, _ in _todo}) == 29
    with multiprocessing.get_context("fork").Pool(min(8, os.cpu_count() or 1)) as pool:
        faults = [fault for fault in pool.map(_compile, range(len(_todo)), chunksize=1) if fault]
    assert not faults, "\n".join(faults)


_todo: list[tuple[Launch, int]] = []


def _compile(index: int) -> str:
    """What is wrong with a launch; nothing, if all is well. Runs in a process of its own."""
    launch, capability = _todo[index]
    dtype = launch.signature[0][1]
    name = f"{launch.kernel.__name__} {dtype} {dict(launch.constants)} sm_{capability}"
    try:
        compiled = launch.compile(capability)
    except Exception as error:  # a pool cannot carry Triton's errors
        return f"{name}: {error!r}, {error.__cause__!r}"
    if compiled.metadata.shared > SHARED[capability]:
        return f"{name}: {compiled.metadata.shared} bytes of shared memory"
    products = "PRECISION" in dict(launch.constants)
    products_seen = TENSOR_CORE[capability] in compiled.asm["ptx"]
    if products and not products_seen and (RECENT or capability < 100):
        return f"{name}: no tensor cores"
    stack = _stack(compiled.asm["cubin"]) if RECENT else 0
    allowed = STACK[capability][products + (products and dtype == "*fp16")]
    return f"{name}: {stack} bytes of stack, allowed {allowed}" if stack > allowed else ""


def _stack(cubin: bytes) -> int:
    """Bytes of local memory a thread, as NVIDIA's tool in Triton's wheel reads them."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        output = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True)
    return max(int(size) for size in re.findall(r"STACK:(\d+)", output.stdout))
