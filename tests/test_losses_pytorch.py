"""All losses fit PyTorch: compile, functorch, autocast, checkpoints, copies, CUDA graphs."""

import copy
import inspect
import io
import math
import pickle

import pytest
import torch
from checks import DTYPES, assert_relative, same_bits, value_and_grads
from loss_cases import CASES, PRIOR, D, N, operands
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from ssl_fast import losses

each = pytest.mark.parametrize("name", CASES)
# Compiling costs a second each: the variants of a loss wait for the slow run.
each_compiled = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if "," in n else ()) for n in CASES]
)
each_without_waiting = pytest.mark.parametrize("name", [n for n in CASES if not CASES[n].waits])


def step(name: str, loss: torch.nn.Module | None = None, wrap=lambda f: f):
    """The case as a function of x, y, t, with the same random numbers at every call."""
    case = CASES[name]
    loss = case.make() if loss is None else loss
    wrapped = wrap(lambda x, y, t: case.call(loss, x, y, t))

    def run(x, y, t):
        torch.manual_seed(5)
        return wrapped(x, y, t)

    run.loss = loss
    return run


def steps(name: str, count: int = 2, **options) -> list[torch.Tensor]:
    """Value and gradients of the last of some steps, and the module's state."""
    run = step(name, **options)
    for _ in range(count):
        found = value_and_grads(run, operands(), 2)
    return found + [x.clone() for x in run.loss.state_dict().values()]


def near(actual: list, expected: list, tolerance: float, tiny: float) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert_relative(a, b.double(), tolerance, tiny=tiny)


def same(actual: list, expected: list) -> bool:
    return all(same_bits(a, b) for a, b in zip(actual, expected, strict=True))


def test_no_loss_is_forgotten() -> None:
    covered = {type(case.make()).__name__ for case in CASES.values()}
    assert covered == set(losses.__all__)


@each_compiled
def test_compiles_whole(name) -> None:
    """fullgraph=True, two steps: the eager bits, also of centre and queue."""
    torch.compiler.reset()

    def compiler(f):
        return torch.compile(f, backend="aot_eager", fullgraph=True)

    compiled = steps(name, wrap=compiler)
    if CASES[name].same_bits:
        assert same(compiled, steps(name))
    else:
        near(compiled, steps(name), 2e-5, 2e-6)


def test_inductor() -> None:
    """The default compiler, once."""
    torch.compiler.reset()
    near(steps("dino", wrap=torch.compile), steps("dino"), 1e-5, 1e-6)


@each
def test_torch_func(name) -> None:
    """torch.func.grad is torch.autograd.grad."""
    run, again = (step(name, CASES[name].make().eval()) for _ in range(2))
    expected = value_and_grads(run, operands(), 2)[1:]
    near(torch.func.grad(again, argnums=(0, 1))(*operands()), expected, 1e-5, 1e-6)


@each
def test_second_derivatives_are_right_or_refused(name) -> None:
    x, y, t = operands(torch.float64)
    run = step(name, CASES[name].make().eval())
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(run(leaf, y, t), leaf, create_graph=True)
    try:
        torch.autograd.grad(grad.square().sum(), leaf)
    except RuntimeError as error:
        assert "differentiable once" in str(error)
    else:
        if name == "zero_cl":  # numeric differences see its rotation, a constant for the gradient
            return
        assert torch.autograd.gradgradcheck(lambda x: run(x, y, t), [leaf], fast_mode=True)


@each
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_types_and_inputs(name, dtype) -> None:
    """Finite scalars in float32 or better, gradients in the inputs' type, inputs left alone."""
    inputs = operands(dtype)
    before = [x.clone() for x in [*inputs, PRIOR]]
    value, *grads = value_and_grads(step(name), inputs, 2)
    assert same([*inputs, PRIOR], before)
    assert value.shape == () and value.dtype == torch.promote_types(dtype, torch.float32)
    assert [x.dtype for x in grads] == [dtype, dtype]
    assert all(bool(x.isfinite().all()) for x in (value, *grads))


@each
def test_retain_graph(name) -> None:
    """Each backward gives the same bits, though state and the caller's gradients have changed."""
    x, y, t = operands()
    x, y, run = x.requires_grad_(), y.requires_grad_(), step(name)
    value = run(x, y, t)

    def backward(retain_graph):
        upstream = torch.full_like(value, 3.0)
        return torch.autograd.grad(value, (x, y), upstream, retain_graph=retain_graph)

    handed_out = backward(True)
    first = [g.clone() for g in handed_out]
    for g in handed_out:
        g.zero_()
    run(x.detach() * 2, y.detach(), -t)
    assert same(backward(True), first)
    assert same(backward(False), first)


@each
def test_gradient_checkpointing(name) -> None:
    """Of the network before any loss; of the loss itself where it has no state to move twice."""
    weight = torch.eye(D)[torch.arange(D).roll(1)]

    def network(*views):
        return tuple(x @ weight for x in views)

    def stored(run):
        return lambda x, y, t: run(*network(x, y, t))

    def recomputed(run):
        return lambda x, y, t: run(*checkpoint(network, x, y, t, use_reentrant=False))

    assert same(steps(name, 1, wrap=recomputed), steps(name, 1, wrap=stored))
    if not CASES[name].make().state_dict():
        whole = steps(name, 1, wrap=lambda f: lambda *z: checkpoint(f, *z, use_reentrant=False))
        assert same(whole, steps(name, 1))


@each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(name, dtype) -> None:
    """As in training: finite, float32 gradients and state, near the float32 loss."""

    def under(f):
        def cast(x, y, t):
            with torch.autocast("cpu", dtype):
                return f(x, y, t)

        return cast

    found = steps(name, 1, wrap=under)
    assert all(bool(x.isfinite().all()) for x in found)
    assert all(x.dtype == torch.float32 for x in found if x.is_floating_point())
    near(found[:1], steps(name, 1)[:1], CASES[name].cast, 1e-6)


@each_without_waiting
def test_never_waits_for_a_gpu(name) -> None:
    """Fake tensors have no values: asking for one, or for a shape that hangs on one, raises."""
    loss = CASES[name].make()
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in loss.modules():
            module._buffers = {
                key: torch.empty_like(value, device="cuda") if value is not None else None
                for key, value in module._buffers.items()
            }
        value = CASES[name].call(loss, *(torch.empty_like(x, device="cuda") for x in operands()))
    assert value.shape == () and value.device.type == "cuda"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@each_without_waiting
def test_captured_in_a_cuda_graph(name) -> None:
    """The step after capture has the bits of an eager second step."""
    inputs = [x.cuda() for x in operands()]
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    runs = [step(name, CASES[name].make().cuda()) for _ in range(2)]
    first = [value_and_grads(run, inputs, 2) for run in runs]
    assert same(*first)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=side):
        captured = value_and_grads(lambda *z: CASES[name].call(runs[0].loss, *z), inputs, 2)
    graph.replay()
    assert same(captured, value_and_grads(runs[1], inputs, 2))


@each
@pytest.mark.parametrize("duplicate", ["deepcopy", "pickle", "torch.save", "state_dict"])
def test_copies(name, duplicate) -> None:
    """After a step; the copy goes on as the original does, and apart from it."""
    run = step(name)
    run(*operands())
    other = duplicates(duplicate, name, run.loss)
    assert repr(other) == repr(run.loss)
    twin = step(name, other)
    for _ in range(2):
        assert same_bits(twin(*operands()), run(*operands()))
    for key, value in run.loss.state_dict().items():
        assert same_bits(value, other.state_dict()[key])
        value.fill_(7)
        assert not bool((other.state_dict()[key] == 7).all())


def duplicates(how: str, name: str, loss: torch.nn.Module) -> torch.nn.Module:
    if how == "deepcopy":
        return copy.deepcopy(loss)
    if how == "pickle":
        return pickle.loads(pickle.dumps(loss))
    if how == "state_dict":
        other = CASES[name].make()
        other.load_state_dict(loss.state_dict())
        return other
    file = io.BytesIO()
    torch.save(loss, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


QUEUED = ("MemoryQueue", "MoCoLoss", "NNCLRLoss", "PAUCLoss", "ProtoNCELoss")


def test_copies_with_a_group(tmp_path) -> None:
    """Process groups cannot be copied; the losses that hold one can, queues inside them too."""
    dist = torch.distributed
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for name in losses.__all__:
            make = getattr(losses, name)
            if "group" not in inspect.signature(make).parameters:
                continue
            loss = make(*((6, 4) if name in QUEUED else ()), group=dist.group.WORLD)
            for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
                held = {module.group for module in other.modules() if hasattr(module, "group")}
                assert held == {dist.group.WORLD.group_name}
        x, y = operands()[:2]
        loss = copy.deepcopy(losses.NTXentLoss(group=dist.group.WORLD))
        torch.testing.assert_close(loss(x, y), losses.NTXentLoss()(x, y))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(("make", "wrong"), [
    (losses.CWRGPLoss, {"eps": "0.1"}),
    (losses.DINOLoss, {"center_momentum": 1.1}),
    (losses.DINOLoss, {"center_momentum": None}),
    (losses.FroSSLLoss, {"invariance_weight": math.inf}),
    (losses.IBOTLoss, {"exponent": -1.0}),
    (losses.MMCRLoss, {"weight": None}),
    (losses.PAUCLoss, {"gamma": math.nan}),
    (losses.PMSNLoss, {"exponent": "0.25"}),
    (losses.SwAVLoss, {"assign_crops": 0}),
    (losses.SwAVLoss, {"assign_crops": (0, -1)}),
    (losses.TiCoLoss, {"beta": 1.0}),
    (losses.TiCoLoss, {"rho": math.nan}),
    (losses.VICRegLoss, {"variance_weight": -25.0}),
    (losses.VICRegLLoss, {"alpha": torch.tensor(0.5)}),
    (losses.VICRegLLoss, {"matches": 20}),
    (losses.WMSELoss, {"eps": 1}),
])  # fmt: skip
def test_options_are_refused_where_they_are_given(make, wrong) -> None:
    """At construction, by the option's name; not as an operator's TypeError in the first step."""
    with pytest.raises((TypeError, ValueError), match=rf"^{next(iter(wrong))} must .*, got "):
        make(**wrong)


X, Y, T = operands()
NARROW = X[:, 1:]


@pytest.mark.parametrize(("call", "message"), [
    (lambda: losses.BYOLLoss()(X, Y, None, T), "z0 must be a torch.Tensor, got NoneType"),
    (lambda: losses.SimSiamLoss()(X, Y, T, T.numpy()), "z1 must be a torch.Tensor, got ndarray"),
    (lambda: losses.MoCoLoss(6, D)(X, None), "key must be a torch.Tensor, got NoneType"),
    (lambda: losses.ReSALoss()([X, Y], [X, Y], X, None), "momentum_encodings must be a torch.T"),
    (lambda: losses.DINOLoss(N)([X, Y], [T, None], Y), r"teachers\[1\] must be a torch.Tensor"),
    (lambda: losses.DCLWLoss()(X, Y[1:]), r"same samples, got \(8, 12\) and \(7, 12\)"),
    (lambda: losses.MECLoss()([X, Y], [T.double(), T.double()]), r"targets\[0\] is torch.float64"),
    (lambda: losses.WassersteinUniformityLoss()(X.int()), r"views\[0\] must be float64"),
    (lambda: losses.WassersteinUniformityLoss()(X, NARROW), "one width, got .*12.*, .*11"),
    (lambda: CASES["swav, queue"].make()([NARROW, NARROW], NARROW), "embedding_dim=12, got .*11"),
])  # fmt: skip
def test_inputs_are_refused_by_name(call, message) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["pmsn, given", "swav, sorted prior"])
def test_given_prior_outlives_a_change_of_type(name, dtype) -> None:
    """model.bfloat16() takes the criterion along; PRIOR rounded to it would sum to 1.0015."""
    loss = CASES[name].make().to(dtype)
    assert same_bits(loss.prior.given, PRIOR)
    assert same_bits(step(name, loss)(*operands()), step(name)(*operands()))


@each
def test_repr_names_the_choices(name) -> None:
    loss = CASES[name].make()
    for word, value in vars(loss).items():
        told = word.startswith("_") or word in ("training", "group", "weights") or value is None
        assert told or f"{word}=" in repr(loss), word
