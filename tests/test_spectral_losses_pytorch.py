"""The whitening and spectral losses fit PyTorch: compile, functorch, autocast, copies."""

import copy
import pickle

import pytest
import torch
from checks import DTYPES, assert_relative, normal, same_bits, value_and_grads

from ssl_fast.losses import (
    CWRGPLoss,
    FroSSLLoss,
    INTLLoss,
    MECLoss,
    MMCRLoss,
    WassersteinUniformityLoss,
    WMSELoss,
    ZeroCLLoss,
)

# A module, and how it is called with two views (8, 12).
LOSSES = {
    "wmse": (lambda: WMSELoss(4, 2, eps=0.1), lambda f, x, y: f([x, y])),
    "cw_rgp": (lambda: CWRGPLoss(2, 4, 2), lambda f, x, y: f([x, y])),
    "intl": (INTLLoss, lambda f, x, y: f([x, y, x + y])),
    "zero_cl": (lambda: ZeroCLLoss("both"), lambda f, x, y: f(x, y)),
    "wasserstein": (WassersteinUniformityLoss, lambda f, x, y: f(x, y)),
    "mmcr": (MMCRLoss, lambda f, x, y: f(x.view(8, 2, 6), y.view(8, 2, 6))),
    "frossl": (FroSSLLoss, lambda f, x, y: f([x, y])),
    "mec": (MECLoss, lambda f, x, y: f([x, y], [y.detach(), x.detach()])),
}
names = pytest.mark.parametrize("name", LOSSES)


def operands(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [normal(8, 12, dtype=dtype, seed=seed) for seed in (2, 4)]


def step(name: str, loss=None):
    make, call = LOSSES[name]
    loss = make() if loss is None else loss

    def run(x, y):
        torch.manual_seed(5)
        return call(loss, x, y)

    return run


@names
def test_compiles_whole(name) -> None:
    """fullgraph=True; the seed is set outside, where the graph begins."""
    torch.compiler.reset()
    make, call = LOSSES[name]
    loss = make()
    compiled = torch.compile(lambda x, y: call(loss, x, y), fullgraph=True, backend="aot_eager")

    def run(x, y):
        torch.manual_seed(5)
        return compiled(x, y)

    expected = value_and_grads(step(name), operands(), 2)
    for a, b in zip(value_and_grads(run, operands(), 2), expected, strict=True):
        assert_relative(a, b.double(), 2e-5, tiny=2e-6)


@names
def test_torch_func(name) -> None:
    expected = value_and_grads(step(name), operands(), 2)[1:]
    grads = torch.func.grad(step(name), argnums=(0, 1))(*operands())
    for a, b in zip(grads, expected, strict=True):
        assert_relative(a, b.double(), 1e-5, tiny=1e-6)


@names
def test_autocast(name) -> None:
    """Half products would lose the spectrum: the losses compute as without autocast."""
    expected = value_and_grads(step(name), operands(), 2)

    def cast(x, y):
        with torch.autocast("cpu", torch.bfloat16):
            return step(name)(x, y)

    under = value_and_grads(cast, operands(), 2)
    for a, b in zip(under, expected, strict=True):
        assert a.dtype == torch.float32
        assert_relative(a, b.double(), 1e-5, tiny=1e-6)


@names
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_types_and_inputs(name, dtype) -> None:
    """Scalars in float32 or better, gradients in the inputs' type, inputs left alone."""
    inputs = operands(dtype)
    before = [x.clone() for x in inputs]
    value, *grads = value_and_grads(step(name), inputs, 2)
    assert value.shape == () and value.dtype == torch.promote_types(dtype, torch.float32)
    assert all(g.dtype == dtype and g.shape == (8, 12) for g in grads)
    assert all(same_bits(x, b) for x, b in zip(inputs, before, strict=True))


@names
def test_copies(name) -> None:
    loss = LOSSES[name][0]()
    expected = step(name, loss)(*operands())
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert repr(other) == repr(loss)
        assert same_bits(step(name, other)(*operands()), expected)
