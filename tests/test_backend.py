"""Which implementation runs: as chosen, else by the table; a choice that cannot run raises."""

import inspect
import os
import subprocess
import sys

import pytest
import torch
from checks import DTYPES, probabilities, unit

import ssl_fast
from ssl_fast import backend as dispatch
from ssl_fast.functional import (
    Assignment,
    gaussian_uniformity,
    linear_soft_cross_entropy,
    sinkhorn,
    sinkhorn_distance,
    soft_cross_entropy,
)

PROTOCOL = {
    "sinkhorn": ("step", "row_potential", "potentials", "dense", "evaluate"),
    "cross_entropy": ("forward", "backward"),
    "uniformity": (
        "potential", "distance_power", "distance_power_backward", "correlation",
        "correlation_backward",
    ),
    "transport": ("distance", "distance_backward", "distances"),
}  # fmt: skip


def everything() -> None:
    """One call of every public function."""
    x, q = unit(5, 3).requires_grad_(), probabilities(5, 5)
    sinkhorn(x)
    Assignment.softmax(x, temperature=0.1).dense()
    soft_cross_entropy(x, Assignment.sinkhorn(x)).backward()
    linear_soft_cross_entropy(x, x, q, symmetric=True).backward()
    gaussian_uniformity(x).backward()
    sinkhorn_distance(x, x).backward()


@pytest.mark.cpu_kernels
def test_native_is_here() -> None:
    """No CPU kernel is skipped in silence: SSL_FAST_ALLOW_NO_NATIVE=1 says that none was built."""
    if os.environ.get("SSL_FAST_ALLOW_NO_NATIVE") == "1":
        pytest.skip("SSL_FAST_ALLOW_NO_NATIVE=1")
    reasons = [dispatch.why_not("native", "cpu", dtype) for dtype in DTYPES.values()]
    assert reasons == [None] * 4


@pytest.mark.cpu_kernels
def test_native_uses_torchs_instruction_set() -> None:
    """ATEN_CPU_CAPABILITY limits our kernels as it does torch's."""
    if reason := dispatch.why_not("native", "cpu", torch.float32):
        pytest.skip(reason)
    from ssl_fast import native

    wanted = {"default": "baseline", "avx2": "avx2", "avx512": "avx512"}
    limit = os.environ.get("ATEN_CPU_CAPABILITY")
    if limit in wanted:
        assert native.cpu().selected() in {"baseline", wanted[limit]}
    assert native.cpu().selected() in native.cpu().instruction_sets()


def test_choice_runs(backend) -> None:
    with dispatch.trace() as ran:
        everything()
    assert {name for _, name in ran} == {backend}
    assert {stem for stem, _ in ran} == set(PROTOCOL)
    everything()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("stem", ["sinkhorn", "cross_entropy", "linear_cross_entropy"])
def test_auto_takes_the_first_that_can(stem, dtype) -> None:
    device = torch.device("cpu")
    able = [
        name
        for name in dispatch.PREFERENCE["cpu", stem]
        if dispatch.why_not(name, "cpu", dtype) is None
    ]
    with ssl_fast.set_backend("auto"):
        assert dispatch.select(stem, device, dtype) == able[0]
    with ssl_fast.set_backend("reference"):
        assert dispatch.select(stem, device, dtype) == "reference"


def test_choice_ends_with_the_block() -> None:
    before = dispatch.get_backend()
    with ssl_fast.set_backend("reference"):
        with ssl_fast.set_backend("auto"):
            assert dispatch.get_backend() == "auto"
        assert dispatch.get_backend() == "reference"
        with pytest.raises(ZeroDivisionError), ssl_fast.set_backend("auto"):
            _ = 1 / 0
        assert dispatch.get_backend() == "reference"
    assert dispatch.get_backend() == before


def test_choice_without_a_block_stays() -> None:
    before = dispatch.get_backend()
    try:
        ssl_fast.set_backend("reference")
        with dispatch.trace() as ran:
            everything()
        assert dispatch.get_backend() == "reference"
        assert {name for _, name in ran} == {"reference"}
    finally:
        ssl_fast.set_backend(before)


@pytest.mark.parametrize("choice", ["cuda", "Native", "", None])
def test_unknown_choice(choice) -> None:
    before = dispatch.get_backend()
    with pytest.raises(ValueError, match=r"unknown.*auto.*native.*triton.*reference"):
        ssl_fast.set_backend(choice)
    assert dispatch.get_backend() == before


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Triton runs on the CPU here")
def test_choice_that_cannot_run_raises() -> None:
    """A forced backend never falls back in silence; the message says why and what to do."""
    with ssl_fast.set_backend("triton"), dispatch.trace() as ran:
        with pytest.raises(RuntimeError, match=r"triton.*sinkhorn.*cpu.*cuda tensors.*auto"):
            sinkhorn(torch.zeros(4, 3))
        with pytest.raises(RuntimeError, match=r"triton.*cross_entropy.*cpu"):
            soft_cross_entropy(torch.zeros(4, 3), probabilities(4, 3))
        with pytest.raises(RuntimeError, match=r"triton.*cross_entropy.*cpu"):
            linear_soft_cross_entropy(unit(4, 2), unit(3, 2), probabilities(4, 3))
    assert ran == []


def test_reasons() -> None:
    assert dispatch.why_not("reference", "cpu", torch.float64) is None
    assert dispatch.why_not("reference", "mps", torch.float32) is None
    assert "mps" in dispatch.why_not("native", "mps", torch.float32)
    assert "float64" in dispatch.why_not("native", "cuda", torch.float64)
    assert "float64" in dispatch.why_not("triton", "cuda", torch.float64)
    assert "int64" in dispatch.why_not("native", "cpu", torch.int64)


@pytest.mark.parametrize("other", ["native", "triton"])
@pytest.mark.parametrize(
    ("stem", "function"), [(stem, f) for stem, names in PROTOCOL.items() for f in names]
)
def test_backends_share_one_protocol(other, stem, function) -> None:
    """The same functions with the same arguments on every floor."""
    if other == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
    ours = inspect.signature(getattr(dispatch.implementation(other, stem), function))
    reference = inspect.signature(getattr(dispatch.implementation("reference", stem), function))
    assert list(ours.parameters) == list(reference.parameters)


@pytest.mark.parametrize(
    ("choice", "expected"), [("reference", "['reference']"), ("fastest", "'fastest' is unknown")]
)
def test_environment_variable(choice, expected) -> None:
    code = (
        "import torch, ssl_fast; from ssl_fast import backend; from ssl_fast.functional import *\n"
        "with backend.trace() as ran: sinkhorn(torch.zeros(2, 2))\n"
        "print([name for _, name in ran])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "SSL_FAST_BACKEND": choice},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert expected in run.stdout + run.stderr
    assert (run.returncode == 0) == (choice == "reference")
