"""Priors on prototypes and MSN, against the printed formulas and autograd."""

import math

import oracles
import pytest
import torch
from checks import (
    DTYPES,
    LAYOUTS,
    Allocations,
    Saved,
    assert_relative,
    assert_right,
    gradcheck,
    normal,
    probabilities,
    same_bits,
    spread,
    unit,
    value_and_grads,
)

from ssl_fast.functional import msn, power_law_prior, prior_kl

pytestmark = [pytest.mark.cpu_kernels, pytest.mark.usefixtures("poisoned")]

SHAPES = [(1, 1), (1, 17), (7, 1), (7, 3), (67, 777), (1031, 64), (5, 5003)]
PRIORS = {
    "uniform": lambda k: None,
    "power law": lambda k: power_law_prior(k, 0.5),
    "random": lambda k: probabilities(k, seed=9),
}
UPSTREAM = torch.tensor(-2.5)


@pytest.mark.parametrize(
    ("shape", "dtype", "prior", "reverse"),
    spread(SHAPES, list(DTYPES), list(PRIORS), [False, True]),
    ids=str,
)
def test_kl_right(backend, shape, dtype, prior, reverse) -> None:
    pi = PRIORS[prior](shape[1])
    assert_right(
        lambda x: prior_kl(x, pi, temperature=0.3, reverse=reverse) + 1,
        lambda x: oracles.prior_kl(x, pi, 0.3, reverse) + 1,
        [normal(*shape, dtype=DTYPES[dtype])],
        wrt=1,
        upstream=UPSTREAM,
    )


@pytest.mark.parametrize("reverse", [False, True])
def test_kl_gradcheck(backend, reverse) -> None:
    prior = probabilities(5).double()
    gradcheck(lambda x: prior_kl(x, prior, temperature=0.7, reverse=reverse), normal(4, 5))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_kl_layouts(backend, layout, dtype) -> None:
    logits = LAYOUTS[layout](normal(67, 131, dtype=DTYPES[dtype]))
    prior = power_law_prior(262)[::2] / power_law_prior(262)[::2].sum()
    assert_right(
        lambda x: prior_kl(x, prior, temperature=0.2),
        lambda x: oracles.prior_kl(x, prior, 0.2),
        [logits],
        wrt=1,
    )


def far() -> dict[str, torch.Tensor]:
    """Logits whose exponentials overflow or vanish."""
    noise = normal(67, 33)
    nobody = normal(67, 33)
    nobody[:, 5] -= 1e4
    nobody[:, 6] -= 200
    return {
        "offset 1e4": 1e4 + noise,
        "offsets of rows": 1e4 * normal(67, 1, seed=1) + noise,
        "normal 1e4": 1e4 * noise,
        "prototypes that nobody picks": nobody,
        "zeros": torch.zeros(67, 33),
        "identical samples": normal(1, 33).repeat(67, 1),
        "one sample at 1e4": 1e4 * normal(1, 33),
    }


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("case", far())
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_kl_far_logits(backend, case, dtype, reverse) -> None:
    """Value within 1e-5 of exact, gradient within 1e-5 of its largest entry: log domain."""
    logits = far()[case].to(dtype)
    prior = probabilities(33, seed=4)
    exact = value_and_grads(
        lambda x: oracles.prior_kl(x, prior, 0.5, reverse), [logits.double()], 1
    )
    value, grad = value_and_grads(
        lambda x: prior_kl(x, prior, temperature=0.5, reverse=reverse), [logits], 1
    )
    assert_relative(value, exact[0], 1e-5, tiny=1e-6)
    scale = float(exact[1].abs().max())
    floor = 2.0**-24 if dtype == torch.float16 else 1e-9  # half subnormals
    assert_relative(grad, exact[1], max(1e-5, torch.finfo(dtype).eps), tiny=1e-5 * scale + floor)


def test_reverse_kl_shares_a_gradient_at_1e30(backend) -> None:
    """All of a prototype's gradient is its likeliest sample's, divided by no count."""
    logits, prior = 1e30 * normal(9, 5), probabilities(5, seed=4)
    (exact,) = value_and_grads(
        lambda x: oracles.prior_kl(x, prior, 1.0, True), [logits.double()], 1
    )[1:]
    (grad,) = value_and_grads(lambda x: prior_kl(x, prior, reverse=True), [logits], 1)[1:]
    assert_relative(grad, exact, 1e-6, tiny=1e-6)


def test_kl_of_the_prior_itself_is_zero(backend) -> None:
    prior = probabilities(33, seed=4)
    logits = prior.log().repeat(5, 1)
    for reverse in (False, True):
        value, grad = value_and_grads(
            lambda x, r=reverse: prior_kl(x, prior, reverse=r), [logits], 1
        )
        assert abs(float(value)) < 1e-6 and float(grad.abs().max()) < 1e-6


def test_kl_uniform_is_mean_entropy(backend) -> None:
    """MSN's me-max term: log K - H(mean)."""
    logits = normal(9, 33)
    p = logits.double().softmax(1).mean(0)
    assert_relative(prior_kl(logits), math.log(33) + (p * p.log()).sum(), 1e-6)


def test_reverse_takes_zeros_in_the_prior(backend) -> None:
    prior = torch.tensor([0.5, 0.0, 0.5])
    assert_right(
        lambda x: prior_kl(x, prior, reverse=True),
        lambda x: oracles.prior_kl(x, prior, reverse=True),
        [normal(7, 3)],
        wrt=1,
    )


def test_power_law() -> None:
    prior = power_law_prior(5, 0.5)
    weights = [k**-0.5 for k in range(1, 6)]
    assert_relative(prior, torch.tensor(weights, dtype=torch.float64) / sum(weights), 1e-7)
    assert bool((power_law_prior(7, 0.0) == power_law_prior(7, 0.0)[0]).all())
    assert abs(float(power_law_prior(131072).double().sum()) - 1) < 1e-5


# V, N, K, D: with tiles kept, recomputed, and several a view.
MSN_SHAPES = [(1, 1, 1, 1), (1, 7, 3, 5), (3, 5, 7, 4), (11, 8, 1031, 16), (2, 131, 257, 2)]
MSN_OPTIONS = [
    {},
    {"sinkhorn_iterations": 3, "prior_weight": 0.0},
    {"reverse": True, "prior": "power law", "sharpening": 0.5},
    {"prior": "random", "prior_weight": 3.0, "sinkhorn_iterations": 1, "temperature": 0.2},
]


def msn_operands(shape, dtype=torch.float32) -> list[torch.Tensor]:
    """anchors, prototypes, targets: the last without gradient. No unit norms."""
    views, n, k, d = shape
    base = normal(n, d, seed=1)
    anchors = base.repeat(views, 1) + 0.5 * normal(views * n, d)
    return [anchors.to(dtype), 3 * normal(k, d, seed=2).to(dtype), base.to(dtype)]


def check_msn(shape, dtype, options) -> None:
    options = dict(options)
    if "prior" in options:
        options["prior"] = PRIORS[options["prior"]](shape[2])
    assert_right(
        lambda a, c, t: msn(a, t, c, **options),
        lambda a, c, t: oracles.msn_loss(a, t, c, **options),
        msn_operands(shape, dtype),
        wrt=2,
        upstream=UPSTREAM,
    )


@pytest.mark.parametrize(
    ("shape", "dtype", "options"), spread(MSN_SHAPES, list(DTYPES), MSN_OPTIONS), ids=str
)
def test_msn_right(backend, shape, dtype, options) -> None:
    check_msn(shape, DTYPES[dtype], options)


@pytest.mark.parametrize("options", MSN_OPTIONS, ids=str)
def test_msn_beyond_the_cache(backend, options) -> None:
    """Most tiles of d_logits are recomputed; several tiles of samples."""
    check_msn((2, 150, 9001, 2), torch.float32, options)


@pytest.mark.parametrize("options", MSN_OPTIONS, ids=str)
def test_msn_gradcheck(backend, options) -> None:
    """Anchors; finite differences of prototypes would move the teacher too (test_msn_right)."""
    options = dict(options)
    if "prior" in options:
        options["prior"] = PRIORS[options["prior"]](5).double()
    anchors, prototypes, targets = msn_operands((2, 3, 5, 3), torch.float64)
    gradcheck(lambda a: msn(a, targets, prototypes, **options), anchors)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_msn_layouts(backend, layout) -> None:
    assert_right(
        lambda a, c, t: msn(a, t, c),
        lambda a, c, t: oracles.msn_loss(a, t, c),
        [LAYOUTS[layout](x) for x in msn_operands((3, 7, 33, 6))],
        wrt=2,
    )


@pytest.mark.parametrize("temperature", [1e-4, 0.02, 0.04, 0.1, 10.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_msn_temperatures(backend, temperature, dtype) -> None:
    """Down to where exponents span 20000 nats: the products' rounding is what is left."""
    operands = [x.double().mul(16).round().div(16).to(dtype) for x in msn_operands((2, 5, 33, 4))]
    options = {"temperature": temperature, "sharpening": 0.25}
    value, *grads = value_and_grads(lambda a, c, t: msn(a, t, c, **options), operands, 2)
    exact = value_and_grads(
        lambda a, c, t: oracles.msn_loss(a, t, c, **options), [x.double() for x in operands], 2
    )
    rounding = 1e-6 + 2e-7 / temperature
    assert_relative(value, exact[0], rounding)
    for grad, e in zip(grads, exact[1:], strict=True):
        eps = torch.finfo(dtype).eps if dtype != torch.float32 else 0
        assert_relative(grad, e, eps, tiny=(4 * rounding + eps) * float(e.abs().max()))


def test_msn_zero_rows(backend) -> None:
    """Zero anchors, targets and prototypes: finite, and their gradients exactly zero."""
    anchors, prototypes, targets = msn_operands((2, 5, 7, 3))
    anchors[3], targets[1], prototypes[2] = 0, 0, 0
    value, d_anchors, d_prototypes = value_and_grads(
        lambda a, c: msn(a, targets, c, sinkhorn_iterations=2), [anchors, prototypes], 2
    )
    assert bool(value.isfinite()) and bool(d_anchors.isfinite().all())
    assert bool((d_anchors[3] == 0).all()) and bool((d_prototypes[2] == 0).all())
    assert bool((d_anchors[2] != 0).any()) and bool(d_prototypes.isfinite().all())


def test_msn_identical_samples(backend) -> None:
    """A collapsed batch: anchors, targets and prototypes all in one direction."""
    anchors, targets, prototypes = (unit(1, 4).repeat(n, 1) for n in (6, 3, 5))
    value, *grads = value_and_grads(lambda a, c: msn(a, targets, c), [anchors, prototypes], 2)
    assert_relative(value, torch.tensor(math.log(5), dtype=torch.float64), 1e-6)
    assert all(float(g.abs().max()) < 1e-5 for g in grads)


def test_msn_reaches_prototypes_and_not_targets(backend) -> None:
    anchors, prototypes, targets = (x.requires_grad_() for x in msn_operands((2, 5, 7, 3)))
    msn(anchors, targets, prototypes).backward()
    assert targets.grad is None
    assert float(anchors.grad.abs().max()) > 0 and float(prototypes.grad.abs().max()) > 0


def test_msn_one_gradient_alone(backend) -> None:
    anchors, prototypes, targets = msn_operands((2, 5, 7, 3))
    _, d_a, d_c = value_and_grads(lambda a, c: msn(a, targets, c), [anchors, prototypes], 2)
    assert same_bits(value_and_grads(lambda a: msn(a, targets, prototypes), [anchors], 1)[1], d_a)
    assert same_bits(value_and_grads(lambda c: msn(anchors, targets, c), [prototypes], 1)[1], d_c)


@pytest.mark.parametrize("reverse", [False, True])
def test_msn_prior_that_is_a_function(backend, reverse) -> None:
    """It is called once, with the mean of all views, and its result is a constant."""
    anchors, prototypes, targets = msn_operands((3, 7, 33, 64))
    seen = []

    def prior(mean):
        seen.append(mean)
        return (0.5 * mean + 0.5 / 33).to(mean.dtype)

    def given(prior):
        return lambda a, c: msn(a, targets, c, prior=prior, reverse=reverse)

    found = value_and_grads(given(prior), [anchors, prototypes], 2)
    (mean,) = seen
    logits = [torch.nn.functional.normalize(x.double(), dim=1) for x in (anchors, prototypes)]
    exact = torch.softmax(logits[0] @ logits[1].t() / 0.1, 1).mean(0)
    assert_relative(mean, exact, 1e-5)
    expected = value_and_grads(given(prior(mean)), [anchors, prototypes], 2)
    for one, other in zip(found, expected, strict=True):
        assert_relative(one, other.double(), 1e-5, tiny=1e-6 * float(other.abs().max()))
    compiled = torch.compile(given(prior), fullgraph=True, backend="aot_eager")
    assert_relative(compiled(anchors, prototypes), expected[0].double(), 1e-5)


def test_msn_backward_twice(backend) -> None:
    """retain_graph: the kept tiles are not written to. And the same bits every run."""
    for shape in ((3, 7, 33, 64), (2, 150, 1031, 2)):
        *inputs, targets = msn_operands(shape)
        inputs = [x.requires_grad_() for x in inputs]
        value = msn(inputs[0], targets, inputs[1])
        first = torch.autograd.grad(value, inputs, retain_graph=True)
        double = torch.autograd.grad(2 * value, inputs, retain_graph=True)
        again = torch.autograd.grad(msn(inputs[0], targets, inputs[1]), inputs)
        second = torch.autograd.grad(value, inputs)
        for a, b, c, d in zip(first, second, again, double, strict=True):
            assert same_bits(a, b) and same_bits(a, c)
            assert_relative(d, 2 * a.double(), 1e-6, tiny=1e-6 * float(a.abs().max()))


def test_msn_without_grad(backend) -> None:
    anchors, prototypes, targets = msn_operands((2, 5, 7, 3))
    expected = value_and_grads(lambda a, c: msn(a, targets, c), [anchors, prototypes], 2)[0]
    with Saved() as saved:
        assert same_bits(msn(anchors, targets, prototypes), expected)
    assert saved.nbytes() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_msn_memory(backend, dtype) -> None:
    """Kept: at most the bytes of inputs and gradients, and statistics; nothing N x K is formed."""
    views, n, k, d = 8, 128, 4096, 4
    anchors, prototypes, targets = msn_operands((views, n, k, d), dtype)
    anchors, prototypes = anchors.requires_grad_(), prototypes.requires_grad_()
    with Allocations() as watch:
        with Saved(anchors, prototypes, targets) as saved:
            value = msn(anchors, targets, prototypes)
        value.backward()
    operands = 2 * (anchors.numel() + prototypes.numel()) * anchors.element_size()
    statistics = 8 * (4 * views * n + n + 3 * k + 64)
    assert 0 < saved.nbytes() <= operands + statistics
    assert watch.largest() <= views * n * k // 4
    assert bool(anchors.grad.isfinite().all()) and bool(prototypes.grad.isfinite().all())


def test_many_prototypes(backend) -> None:
    """K = 131072, few samples, odd width."""
    anchors, prototypes, targets = msn_operands((2, 3, 131072, 3))
    assert_right(
        lambda a, c, t: msn(a, t, c, prior=power_law_prior(131072), reverse=True),
        lambda a, c, t: oracles.msn_loss(a, t, c, prior=power_law_prior(131072), reverse=True),
        [anchors, prototypes, targets],
        wrt=2,
    )


L, P3 = torch.zeros(4, 3), torch.full((3,), 1 / 3)
A, T, W = torch.ones(4, 2), torch.ones(2, 2), torch.ones(3, 2)
ZERO = torch.tensor([0.5, 0.0, 0.5])
REFUSED = {
    "logits a list": (lambda: prior_kl([[0.0]]), TypeError, ["logits", "list"]),
    "logits a vector": (lambda: prior_kl(L[0]), ValueError, ["logits", r"\(3,\)"]),
    "prior of another length": (
        lambda: prior_kl(L, torch.full((4,), 0.25)), ValueError, ["prior", r"\(3,\)", r"\(4,\)"]
    ),
    "prior a list": (lambda: prior_kl(L, [0.5, 0.5, 0.0]), TypeError, ["prior", "list"]),
    "prior negative": (
        lambda: prior_kl(L, torch.tensor([1.5, -0.5, 0.0])), ValueError, ["prior", "-0.5"]
    ),
    "prior that sums to 3": (
        lambda: prior_kl(L, torch.ones(3)), ValueError, ["prior", "sum to 1", "3"]
    ),
    "prior with NaN": (lambda: prior_kl(L, P3 * math.nan), ValueError, ["prior", "nan"]),
    "prior that learns": (
        lambda: prior_kl(L, P3.clone().requires_grad_()), ValueError, ["prior.detach"]
    ),
    "prior elsewhere": (lambda: prior_kl(L, P3.to("meta")), ValueError, ["prior", "meta"]),
    "prior with a zero": (
        lambda: prior_kl(L, ZERO), ValueError, [r"prior\[1\] is 0", "reverse=True"]
    ),
    "temperature 0": (lambda: prior_kl(L, temperature=0), ValueError, ["temperature", "> 0"]),
    "kl, no group": (
        lambda: prior_kl(L, group="0"), ValueError, ["group", "init_process_group"]
    ),
    "no prototypes": (lambda: power_law_prior(0), ValueError, ["num_prototypes", "0"]),
    "half a prototype": (lambda: power_law_prior(2.5), ValueError, ["num_prototypes", "2.5"]),
    "exponent -1": (lambda: power_law_prior(3, -1), ValueError, ["exponent", ">= 0", "-1"]),
    "exponent text": (lambda: power_law_prior(3, "1"), TypeError, ["exponent", "str"]),
    "anchors no multiple": (
        lambda: msn(A[:3], T, W), ValueError, ["anchors", "3 anchors", "2 targets"]
    ),
    "fewer anchors than targets": (lambda: msn(T, A, W), ValueError, ["2 anchors", "4 targets"]),
    "anchors a vector": (lambda: msn(A[0], T, W), ValueError, ["anchors", r"\(2,\)"]),
    "targets of another width": (
        lambda: msn(A, torch.ones(2, 3), W), ValueError, ["targets", r"\(2, 3\)", r"\(3, 2\)"]
    ),
    "prototypes of another type": (
        lambda: msn(A, T, W.double()), TypeError, ["prototypes", "float64"]
    ),
    "prior with a zero in msn": (
        lambda: msn(A, T, W, prior=ZERO), ValueError, [r"prior\[1\] is 0"]
    ),
    "sharpening 0": (lambda: msn(A, T, W, sharpening=0), ValueError, ["sharpening", "> 0"]),
    "weight -1": (lambda: msn(A, T, W, prior_weight=-1), ValueError, ["prior_weight", ">= 0"]),
    "iterations -1": (
        lambda: msn(A, T, W, sinkhorn_iterations=-1), ValueError, ["sinkhorn_iterations", "-1"]
    ),
    "iterations 1.5": (
        lambda: msn(A, T, W, sinkhorn_iterations=1.5), ValueError, ["sinkhorn_iterations", "1.5"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case) -> None:
    call, kind, words = REFUSED[case]
    with pytest.raises(kind) as caught:
        call()
    for word in words:
        caught.match(word)
