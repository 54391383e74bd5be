"""The losses with state fit PyTorch: compile, functorch, autocast, copies; inputs left alone."""

import copy
import io
import pickle

import pytest
import torch
from checks import DTYPES, assert_relative, normal, same_bits, unit, value_and_grads

from ssl_fast.losses import DINOLoss, IBOTLoss, KoLeoLoss, MSNLoss, PMSNLoss, SwAVLoss

PRIOR = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.1])
MASK = torch.tensor([[True, True, False], [True, True, True]])


def queued(**options) -> SwAVLoss:
    """With a full queue."""
    loss = SwAVLoss(queue_length=5, embedding_dim=3, **options)
    loss.load_state_dict({"queue": unit(2, 5, 3, seed=9)})
    return loss


# A module and how it is called with x (5, 3), y (5, 3), t (5, 3); gradients reach x and y.
LOSSES = {
    "swav": (SwAVLoss, lambda f, x, y, t: f([x, t, -x], y)),
    "swav, queue": (queued, lambda f, x, y, t: f([t, -t, x], y)),
    "swav, sorted prior": (
        lambda: SwAVLoss(prior=PRIOR, prior_order="sorted"),
        lambda f, x, y, t: f([x, t], y),
    ),
    "dino": (lambda: DINOLoss(5), lambda f, x, y, t: f([x, t], [t, -t], y, t, epoch=0)),
    "dino, logits": (lambda: DINOLoss(5), lambda f, x, y, t: f([x @ y.T, t @ y.T], [t @ t.T])),
    "dino, sinkhorn": (
        lambda: DINOLoss(5, centering="sinkhorn", prior="power_law", prior_order="sorted"),
        lambda f, x, y, t: f([x, t], [t, -t], y),
    ),
    "ibot": (lambda: IBOTLoss(5), lambda f, x, y, t: f(x, t, MASK, y, t)),
    "ibot, logits": (lambda: IBOTLoss(5), lambda f, x, y, t: f(x @ y.T, t @ t.T, MASK)),
    "koleo": (KoLeoLoss, lambda f, x, y, t: f(torch.cat([x, y]))),
    "msn": (lambda: MSNLoss(sinkhorn_iterations=2), lambda f, x, y, t: f(x, t, y)),
    "msn, entropy": (lambda: MSNLoss(entropy_weight=0.5), lambda f, x, y, t: f(x, t, y)),
    "pmsn": (PMSNLoss, lambda f, x, y, t: f(x, t, y)),
    "pmsn, given": (lambda: PMSNLoss(PRIOR), lambda f, x, y, t: f(x, t, y)),
}


def operands(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [unit(5, 3, dtype=dtype, seed=seed) for seed in (2, 4, 6)]


def run(name: str, dtype: torch.dtype = torch.float32, steps: int = 1, wrap=lambda f: f) -> list:
    """Value and gradients of the last of some steps, and the module's state."""
    make, call = LOSSES[name]
    loss = make()
    step = wrap(lambda x, y, t: call(loss, x, y, t))
    for _ in range(steps):
        found = value_and_grads(step, operands(dtype), 2)
    return found + [x.clone() for x in loss.state_dict().values()]


@pytest.mark.parametrize("name", LOSSES)
def test_compiles_whole(name) -> None:
    """fullgraph=True, two steps: the eager bits, also of centre and queue."""
    torch.compiler.reset()
    options = {"fullgraph": True, "backend": "aot_eager"}
    compiled = run(name, steps=2, wrap=lambda f: torch.compile(f, **options))
    eager = run(name, steps=2)
    if "koleo" in name:  # AOT autograd decomposes the norms in it
        for a, b in zip(compiled, eager, strict=True):
            assert_relative(a, b.double(), 1e-5, tiny=1e-6)
    else:
        assert all(same_bits(a, b) for a, b in zip(compiled, eager, strict=True))


def test_inductor() -> None:
    """The default compiler, once."""
    torch.compiler.reset()
    for a, b in zip(run("dino", steps=2, wrap=torch.compile), run("dino", steps=2), strict=True):
        assert_relative(a, b.double(), 1e-5, tiny=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_torch_func(name) -> None:
    """torch.func.grad is torch.autograd.grad."""
    make, call = LOSSES[name]
    x, y, t = operands()
    loss = make().eval()
    expected = value_and_grads(lambda x, y: call(loss, x, y, t), [x, y], 2)[1:]
    grads = torch.func.grad(lambda x, y: call(loss, x, y, t), argnums=(0, 1))(x, y)
    for a, b in zip(grads, expected, strict=True):
        assert_relative(a, b.double(), 1e-6, tiny=1e-7)


@pytest.mark.parametrize("name", [n for n in LOSSES if n != "koleo"])
def test_double_backward_is_refused(name) -> None:
    make, call = LOSSES[name]
    x, y, t = operands()
    loss = call(make(), x.requires_grad_(), y, t)
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(grad.square().sum(), x)


def test_koleo_has_a_second_derivative() -> None:
    """It is plain PyTorch."""
    x = normal(5, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradgradcheck(KoLeoLoss(), [x])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_inputs_are_left_alone(name, dtype) -> None:
    make, call = LOSSES[name]
    loss, inputs = make(), operands(dtype)
    before = [x.clone() for x in inputs]
    found = value_and_grads(lambda *z: call(loss, *z), inputs, 2)
    assert all(same_bits(x, b) for x, b in zip(inputs, before, strict=True))
    assert same_bits(PRIOR, torch.tensor([0.5, 0.2, 0.1, 0.1, 0.1]))
    assert [x.dtype for x in found[1:]] == [dtype, dtype]


@pytest.mark.parametrize("name", LOSSES)
def test_retain_graph(name) -> None:
    """A second backward gives the same bits, though state has moved since."""
    make, call = LOSSES[name]
    loss, (x, y, t) = make(), operands()
    x, y = x.requires_grad_(), y.requires_grad_()
    value = call(loss, x, y, t)
    first = torch.autograd.grad(value, (x, y), retain_graph=True)
    call(loss, x.detach() * 2, y.detach(), -t)
    second = torch.autograd.grad(value, (x, y))
    assert all(same_bits(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_autocast(name, dtype) -> None:
    """Mixed types as in training: finite, float32 gradients, near the float32 loss."""
    make, call = LOSSES[name]
    loss = make()

    def under(x, y, t):
        with torch.autocast("cpu", dtype):
            return call(loss, x, y, t)

    value, *grads = value_and_grads(under, operands(), 2)
    assert all(g.dtype == torch.float32 and bool(g.isfinite().all()) for g in grads)
    assert value.dtype == torch.float32
    assert_relative(value, run(name)[0].double(), 5e-2)
    state = list(loss.state_dict().values())
    assert all(x.dtype == torch.float32 and bool(x.isfinite().all()) for x in state)


@pytest.mark.parametrize("duplicate", ["deepcopy", "pickle", "torch.save"])
@pytest.mark.parametrize("name", LOSSES)
def test_copies(name, duplicate) -> None:
    """After a step; the copy goes on as the original does, and apart from it."""
    make, call = LOSSES[name]
    loss, inputs = make(), operands()
    call(loss, *inputs)
    if duplicate == "deepcopy":
        other = copy.deepcopy(loss)
    elif duplicate == "pickle":
        other = pickle.loads(pickle.dumps(loss))
    else:
        file = io.BytesIO()
        torch.save(loss, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert repr(other) == repr(loss)
    for _ in range(2):
        assert same_bits(call(other, *inputs), call(loss, *inputs))
    for key, value in loss.state_dict().items():
        assert same_bits(value, other.state_dict()[key])
        value.fill_(7)
        assert not bool((other.state_dict()[key] == 7).all())


@pytest.mark.parametrize("name", LOSSES)
def test_repr_names_the_choices(name) -> None:
    loss = LOSSES[name][0]()
    for word in [k for k in vars(loss) if not k.startswith("_") and k not in ("training", "group")]:
        assert f"{word}=" in repr(loss), word
