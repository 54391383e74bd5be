"""`sinkhorn` and `Assignment` against SwAV's listing and its relatives, on every CPU backend."""

import math

import oracles
import pytest
import torch
from checks import (
    DTYPES,
    LAYOUTS,
    Allocations,
    assert_relative,
    assert_right,
    error,
    normal,
    probabilities,
    same_bits,
    unit,
)

from ssl_fast import backend as dispatch
from ssl_fast.functional import (
    Assignment,
    linear_soft_cross_entropy,
    multi_crop_cross_entropy,
    sinkhorn,
    soft_cross_entropy,
)
from ssl_fast.functional._teacher import centered
from ssl_fast.functional._tiles import product_dtype

pytestmark = [pytest.mark.cpu_kernels, pytest.mark.usefixtures("poisoned")]

# One row, one column, odd, prime, more columns than a block of any kernel, more rows than a block.
SHAPES = [(1, 1), (1, 17), (7, 1), (7, 3), (67, 777), (1031, 64), (5, 5003)]


def cosines(n: int, k: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Scores (N, K) such as embeddings and prototypes of 16 dimensions have."""
    scores = unit(n, 16, dtype=torch.float64, seed=seed) @ unit(k, 16, seed=seed + 1).double().T
    return scores.to(dtype)


def power_law(k: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    prior = torch.arange(1, k + 1, dtype=torch.float64) ** -0.25
    return (prior / prior.sum()).to(dtype)


def test_oracles_agree() -> None:
    """The log-domain oracle is the printed listing, wherever the listing does not overflow."""
    scores, prior = cosines(31, 17, torch.float64), power_law(17)
    for iterations in (1, 2, 3, 10):
        listed = oracles.swav(scores, 0.05, iterations, prior)
        assert_relative(oracles.sinkhorn(scores, 0.05, iterations, prior), listed, 1e-12)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_right(backend, shape, dtype) -> None:
    assert_right(sinkhorn, oracles.swav, [cosines(*shape, dtype)])


def test_right_when_large(backend) -> None:
    assert_right(sinkhorn, oracles.swav, [cosines(257, 3000)])


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (67, 777)], ids=str)
def test_assignment_right(backend, shape, dtype) -> None:
    prior = power_law(shape[1])
    options = {"epsilon": 0.1, "iterations": 4, "prior": prior}
    assert_right(
        lambda scores: Assignment.sinkhorn(scores, **options).dense(),
        lambda scores: oracles.swav(scores, **options),
        [cosines(*shape, dtype)],
    )


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 3, 5), (67, 1031, 16), (67, 1031, 2)], ids=str)
def test_pair_right(backend, shape, dtype) -> None:
    """(z, prototypes) stands for z @ prototypes.T: scores kept, partly kept, and recomputed."""
    n, k, d = shape
    assert_right(
        lambda *pair: Assignment.sinkhorn(pair).dense(),
        lambda z, prototypes: oracles.swav(z @ prototypes.T),
        [unit(n, d, dtype=dtype), unit(k, d, dtype=dtype, seed=1)],
    )


def test_pair_of_several_tiles(backend) -> None:
    assert_right(
        lambda *pair: Assignment.sinkhorn(pair).dense(),
        lambda z, prototypes: oracles.swav(z @ prototypes.T),
        [unit(300, 4), unit(5003, 4, seed=1)],
    )


@pytest.mark.parametrize("iterations", [1, 2, 3, 10])
@pytest.mark.parametrize("epsilon", [0.05, 0.5])
def test_order_is_swavs(backend, epsilon, iterations) -> None:
    """Prototypes first, samples last, `iterations` times: any other order differs by percents."""
    scores = cosines(37, 23, torch.float64)
    q = sinkhorn(scores, epsilon=epsilon, iterations=iterations)
    assert_relative(q, oracles.swav(scores, epsilon, iterations), 1e-11)
    assert_relative(q.sum(1), torch.ones(37).double(), 1e-12)


def test_no_shift_per_sample(backend) -> None:
    """Constants added to samples change the answer, as they do in the listing (dinov2 #583)."""
    scores = cosines(37, 23, torch.float64)
    shifted = scores + torch.arange(37)[:, None] / 37
    assert_relative(sinkhorn(shifted), oracles.swav(shifted), 1e-11)
    assert error(sinkhorn(shifted), sinkhorn(scores)) > 1e-3


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("pair", [False, True])
def test_start_softmax_is_msns(backend, iterations, pair) -> None:
    """Sinkhorn on sharpened probabilities, literally; the other start is far from it."""
    z, prototypes = unit(37, 8, dtype=torch.float64), unit(23, 8, dtype=torch.float64, seed=1)
    scores = z @ prototypes.T
    expected = oracles.msn(scores, 0.1, 0.25, iterations)
    held = (z, prototypes) if pair else scores
    options = {"epsilon": 0.1 * 0.25, "iterations": iterations}
    q = Assignment.sinkhorn(held, start="softmax", **options).dense()
    assert_relative(q, expected, 1e-10)
    assert error(Assignment.sinkhorn(held, **options).dense(), expected) > 1e-2


def test_marginals_converge_to_prior(backend) -> None:
    prior = power_law(23)
    scores = cosines(97, 23, torch.float64)
    distances = [
        error(sinkhorn(scores, epsilon=0.2, iterations=t, prior=prior).mean(0), prior)
        for t in (1, 5, 200)
    ]
    assert distances[0] > 10 * distances[1] > 100 * distances[2]
    assert distances[2] < 1e-6


def test_uniform_prior_is_none(backend) -> None:
    scores, uniform = cosines(67, 129), torch.full((129,), 1 / 129)
    assert_relative(sinkhorn(scores, prior=uniform), sinkhorn(scores).double(), 3e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_prior_in_any_float_type(backend, dtype) -> None:
    scores = cosines(67, 129)
    expected = oracles.swav(scores.double(), prior=power_law(129, dtype))
    assert_relative(sinkhorn(scores, prior=power_law(129, dtype)), expected, 1e-5)


@pytest.mark.parametrize("start", ["zero", "softmax"])
def test_prior_zero_gets_nothing(backend, start) -> None:
    prior = torch.tensor([0.5, 0.0, 0.25, 0.25, 0.0])
    scores = cosines(11, 5) * 0.3
    q = Assignment.sinkhorn(scores, prior=prior, start=start).dense()
    assert bool((q[:, [1, 4]] == 0).all())
    assert_relative(q, oracles.sinkhorn(scores.double(), prior=prior, start=start), 1e-5)


def far() -> dict[str, torch.Tensor]:
    """Scores whose exponentials overflow or vanish, though the assignment is ordinary."""
    noise = normal(67, 33)
    dominated, neglected = cosines(67, 33), cosines(67, 33)
    dominated[:, 5] += 50
    neglected[:, 5] -= 1e3
    return {
        "offset 1e4": 1e4 + noise,
        "offset -1e4": -1e4 + noise,
        "offsets of samples and prototypes": (
            1e4 * normal(67, 1, seed=1) + 1e4 * normal(1, 33, seed=2) + noise
        ),
        "normal 1e4": 1e4 * noise,
        "one prototype dominates": dominated,
        "no sample wants a prototype": neglected,
        "collapsed": cosines(1, 33).repeat(67, 1),
        "collapsed at 1e4": (1e4 * cosines(1, 33)).repeat(67, 1),
        "zeros": torch.zeros(67, 33),
        "some zero rows": cosines(67, 33) * (torch.arange(67) % 3 > 0)[:, None],
        "repeated rows": cosines(7, 33).repeat(10, 1),
        "equal columns": cosines(67, 1).repeat(1, 33),
        "one huge entry": cosines(67, 33).index_put((torch.tensor(3), torch.tensor(4)), 
                                                    torch.tensor(1e4)),
    }  # fmt: skip


def float32_exponents(scores: torch.Tensor, q: torch.Tensor) -> torch.Tensor | float:
    """Relative error of q where exponents are rounded to float32.

    Scores that span at most 64 nats: a rounding or two of up to 64, 2e-6 each. Others: log q is
    exact until its one rounding, 6e-8 of it, and of the row's sum.
    """
    if float(scores.max() - scores.min()) / 0.05 <= 64:
        return 1e-5
    return 1e-6 + 1.2e-7 * q.double().clamp(min=1e-30).log().abs()


@pytest.mark.parametrize("case", far())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_far_scores(backend, case, dtype) -> None:
    """Relative error 1e-6 of q, not the 1e-2 of float32 potentials."""
    scores = far()[case].to(dtype)
    exact = oracles.sinkhorn(scores.double())
    for q in (sinkhorn(scores), Assignment.sinkhorn(scores).dense()):
        assert_relative(q, exact, 1e-9 if dtype is torch.float64 else float32_exponents(scores, q))
        assert_relative(q.sum(1), torch.ones(len(q)).double(), 1e-6)


@pytest.mark.parametrize("case", ["offset 1e4", "normal 1e4", "one prototype dominates", "zeros"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_far_scores_half(backend, case, dtype) -> None:
    scores = far()[case].to(dtype)
    assert_relative(sinkhorn(scores), oracles.sinkhorn(scores.double()), 1e-5)


@pytest.mark.parametrize("case", ["offset 1e4", "offsets of samples and prototypes", "normal 1e4"])
def test_far_scores_start_softmax(backend, case) -> None:
    scores = far()[case]
    q = Assignment.sinkhorn(scores, start="softmax").dense()
    assert_relative(q, oracles.sinkhorn(scores.double(), start="softmax"), 2e-5)


def test_far_pair(backend) -> None:
    """Products of small integers are exact in float32: so must the rest be, at scores of 1e4."""
    z, prototypes = normal(67, 8).mul(20).round(), normal(129, 8, seed=1).mul(20).round()
    q = Assignment.sinkhorn((z, prototypes), epsilon=0.5).dense()
    exact = oracles.sinkhorn((z @ prototypes.T).double(), 0.5)
    assert_relative(q, exact, float32_exponents(z @ prototypes.T, q))


def test_columns_survive_underflow(backend) -> None:
    """One step's column sums in the log domain, though every exponential of a column is zero."""
    scores = cosines(67, 33)
    scores[:, 5] -= 1e4
    kernels = dispatch.implementation(backend, "sinkhorn")
    row, columns = kernels.step(scores, 20.0, None)
    assert bool((row == 0).all())
    assert_relative(columns, (20 * scores.double()).logsumexp(0), 1e-6)
    col = normal(33, dtype=torch.float64) - columns
    row, columns = kernels.step(scores, 20.0, col)
    expected = -(20 * scores.double() + col).logsumexp(1)
    assert error(row, expected) < 1e-5
    assert error(columns, (20 * scores.double() + expected[:, None]).logsumexp(0)) < 1e-3
    assert same_bits(kernels.row_potential(scores, 20.0, col), row)


@pytest.mark.parametrize("shape", [(33, 20, 12), (9, 50, 7)], ids=str)
def test_far_pair_rounds_alike_in_every_pass(backend, shape) -> None:
    """Scores of 1e4 that are no integers: its mass shows where two passes round apart."""
    n, k, d = shape
    z, prototypes = normal(n, d) * 1e2, normal(k, d, seed=1) * 1e2
    for held in (
        Assignment.sinkhorn((z, prototypes)),
        Assignment.softmax((z, prototypes), temperature=0.04),
    ):
        assert held.z is not None
        assert_relative(held.dense().sum(1), torch.ones(n).double(), 1e-6)
        student, weight = torch.zeros(n, 3, requires_grad=True), torch.zeros(k, 3)
        for loss in (
            soft_cross_entropy(torch.zeros(n, k), held),
            linear_soft_cross_entropy(student, weight, held),
            multi_crop_cross_entropy([student, student], [held], weight, temperature=1.0),
        ):
            assert_relative(loss, torch.tensor(k).double().log(), 1e-6)


def test_far_pair_in_other_tiles(backend) -> None:
    """Some rows of an assignment, and a loss's own tiles, are products that round otherwise."""
    n, d = 1031, 257
    held = Assignment.sinkhorn((normal(n, d) * 1e3, normal(n, d, seed=1)))
    assert held.z is not None
    assert_relative(held[-300:].dense().sum(1), torch.ones(300).double(), 1e-6)
    x, weight = torch.zeros(n, d, requires_grad=True), torch.zeros(n, d)
    for options in ({"symmetric": True}, {"reduction": "none"}):
        loss = linear_soft_cross_entropy(x, weight, held, **options)
        assert_relative(loss, torch.full(loss.shape, n).double().log(), 1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_layouts(backend, layout, dtype) -> None:
    scores = cosines(67, 129, dtype)
    strided = LAYOUTS[layout](scores)
    assert same_bits(sinkhorn(strided), sinkhorn(scores))
    assert_right(lambda s: Assignment.sinkhorn(s).dense(), oracles.swav, [strided])
    z, prototypes = unit(67, 16, dtype=dtype), unit(129, 16, dtype=dtype, seed=1)
    assert_right(
        lambda *pair: Assignment.sinkhorn(pair).dense(),
        lambda z, prototypes: oracles.swav(z @ prototypes.T),
        [LAYOUTS[layout](z), LAYOUTS[layout](prototypes)],
    )


def test_expanded(backend) -> None:
    rows, columns = cosines(1, 129).expand(67, -1), cosines(67, 1).expand(-1, 129)
    assert_right(sinkhorn, oracles.swav, [rows])
    assert_right(sinkhorn, oracles.swav, [columns])


@pytest.mark.parametrize("shape", [(7, 3), (67, 1031)], ids=str)
def test_same_bits_every_run(backend, shape) -> None:
    scores = cosines(*shape)
    first = sinkhorn(scores)
    assert all(same_bits(sinkhorn(scores.clone()), first) for _ in range(2))
    potentials = [Assignment.sinkhorn(scores) for _ in range(2)]
    assert all(same_bits(p.row, potentials[0].row) for p in potentials)
    assert all(same_bits(p.col, potentials[0].col) for p in potentials)


def test_constants(backend) -> None:
    """No gradient flows into an assignment, and none is promised."""
    scores = cosines(7, 3).requires_grad_()
    assert not sinkhorn(scores).requires_grad
    held = Assignment.sinkhorn(scores)
    assert not held.dense().requires_grad
    assert not Assignment.softmax(scores, temperature=0.1).dense().requires_grad
    pair = Assignment.sinkhorn((scores, cosines(5, 3).requires_grad_()))
    assert not pair.dense().requires_grad


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (67, 777), (5, 5003)], ids=str)
@pytest.mark.parametrize("centre", [False, True])
def test_softmax_is_dinos(backend, shape, dtype, centre) -> None:
    center = normal(shape[1], seed=2).mul(0.2) if centre else None
    assert_right(
        lambda s: Assignment.softmax(s, temperature=0.04, center=center).dense(),
        lambda s: oracles.centred(s, 0.04, center),
        [cosines(*shape, dtype)],
    )


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (67, 777), (5, 5003)], ids=str)
def test_centered_is_softmax_and_the_mean(backend, shape, dtype) -> None:
    views = [cosines(*shape, dtype, seed=3 * v) for v in range(3)]
    center = normal(1, shape[1], seed=2).mul(0.2)
    targets, mean = centered(views, center, 0.04)
    assert mean.dtype == torch.promote_types(dtype, torch.float32) and mean.shape == center.shape
    assert_relative(mean, torch.cat(views).double().mean(0, keepdim=True), 1e-6, tiny=1e-7)
    for view, target in zip(views, targets, strict=True):
        alone = Assignment.softmax(view, temperature=0.04, center=center[0])
        assert error(target.row, alone.row) < 1e-6 and same_bits(target.col, alone.col)
    rounded = centered(views, center.to(dtype), 0.04)[1]
    assert rounded.dtype == dtype and error(rounded, mean) < 2 * torch.finfo(dtype).eps


def test_centered_refuses() -> None:
    scores, center = cosines(7, 3), torch.zeros(1, 3)
    for teachers, message in (
        ([scores, scores[:6]], r"teachers\[1\] is \(6, 3\), but teachers\[0\] is \(7, 3\)"),
        ([scores, scores.double()], r"teachers\[1\].to\(teachers\[0\].dtype\)"),
        ([scores[:, :2]], r"center must have shape \(1, 2\), got \(1, 3\)"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            centered(teachers, center, 0.04)


@pytest.mark.parametrize("case", far())
def test_softmax_of_far_scores(backend, case) -> None:
    scores = far()[case]
    center = 100 * normal(scores.shape[1], seed=2)
    q = Assignment.softmax(scores, temperature=0.07, center=center).dense()
    assert_relative(q, oracles.centred(scores.double(), 0.07, center), 1e-5)


def test_softmax_where_float32_skips_nats(backend) -> None:
    scores = 1e9 * normal(67, 33)
    q = Assignment.softmax(scores, temperature=0.07).dense()
    assert_relative(q, oracles.centred(scores.double(), 0.07), 1e-4)


def test_softmax_of_pair(backend) -> None:
    assert_right(
        lambda *pair: Assignment.softmax(pair, temperature=0.1).dense(),
        lambda z, prototypes: oracles.centred(z @ prototypes.T, 0.1),
        [unit(67, 16), unit(777, 16, seed=1)],
    )


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_from_dense_round_trip(dtype) -> None:
    targets = probabilities(7, 5, dtype=dtype)
    held = Assignment.from_dense(targets)
    assert same_bits(held.dense(), targets.to(product_dtype(targets)))
    assert held.shape == (7, 5) and len(held) == 7
    assert held.dtype == dtype and held.device == targets.device
    assert torch.equal(Assignment.from_dense(targets.T).dense(), held.dense().T)


MADE = {
    "sinkhorn": lambda: Assignment.sinkhorn(cosines(40, 777)),
    "softmax": lambda: Assignment.softmax(cosines(40, 777), temperature=0.1),
    "centred": lambda: Assignment.softmax(cosines(40, 777), temperature=0.1, center=normal(777)),
    "pair": lambda: Assignment.sinkhorn((unit(40, 4), unit(777, 4, seed=1))),
    "dense": lambda: Assignment.from_dense(probabilities(40, 777)),
}
ROWS = {
    "head": slice(None, 3),
    "last": slice(-5, None),
    "steps": slice(1, 30, 3),
    "index": torch.tensor([3, 3, 39, 0]),
    "mask": torch.arange(40) % 7 == 2,
}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("made", MADE)
def test_rows(made, rows) -> None:
    """A queue keeps rows of an assignment: they are the rows of the dense matrix."""
    held, rows = MADE[made](), ROWS[rows]
    part = held[rows]
    expected = held.dense()[rows]
    assert part.shape == tuple(expected.shape) and len(part) == len(expected)
    assert_relative(part.dense(), expected.double(), 2e-5)


def test_pair_is_never_stored(backend) -> None:
    """Potentials of a pair: no tensor of N x K, and N + K numbers kept beside the inputs."""
    n, k, d = 1024, 4096, 8
    z, prototypes = unit(n, d), unit(k, d, seed=1)
    with Allocations() as watch:
        held = Assignment.sinkhorn((z, prototypes), iterations=1)
    assert any("mm" in name for name, *_ in watch.results)
    assert watch.largest() <= n * k // 4
    kept = [held.values, held.row, held.col]
    assert sum(x.numel() for x in kept if x is not None) == n + k
    assert held.z.data_ptr() == z.data_ptr()


def test_step_agrees_with_potentials(backend) -> None:
    """`potentials` is the loop over `step` that its docstring prints."""
    scores, prior = cosines(67, 129), power_law(129).log()
    kernels = dispatch.implementation(backend, "sinkhorn")
    for softmax_start in (False, True):
        row, col = kernels.potentials(scores, 20.0, prior, 3, softmax_start)
        expected = torch.zeros(129).double() if softmax_start else None
        for _ in range(3):
            expected = prior - kernels.step(scores, 20.0, expected)[1]
        assert error(col - col[0], expected - expected[0]) < 1e-5
        assert error(row, kernels.row_potential(scores, 20.0, col)) < 1e-5
        q = kernels.dense(scores, 20.0, prior, 3, softmax_start)
        assert_relative(kernels.evaluate(scores, 20.0, row, col), q.double(), 1e-5)


S = torch.zeros(4, 3)
UNIFORM = torch.full((3,), 1 / 3)
REFUSED = {
    "a list": (lambda: sinkhorn([[1.0]]), TypeError, ["scores", "list"]),
    "a pair": (lambda: sinkhorn((S, S)), TypeError, ["scores", "tuple", "Assignment"]),
    "integers": (lambda: sinkhorn(S.int()), TypeError, ["scores", "int32", "float"]),
    "booleans": (lambda: sinkhorn(S.bool()), TypeError, ["scores", "bool"]),
    "complex": (lambda: sinkhorn(S.cfloat()), TypeError, ["scores", "complex64"]),
    "a vector": (lambda: sinkhorn(S[0]), ValueError, ["scores", r"\(3,\)"]),
    "a cube": (lambda: sinkhorn(S[None]), ValueError, ["scores", r"\(1, 4, 3\)"]),
    "no rows": (lambda: sinkhorn(S[:0]), ValueError, ["scores", r"\(0, 3\)", "empty"]),
    "no columns": (lambda: sinkhorn(S[:, :0]), ValueError, ["scores", r"\(4, 0\)", "empty"]),
    "sparse": (lambda: sinkhorn(torch.eye(3).to_sparse()), TypeError, ["scores", "sparse"]),
    "nested": (
        lambda: sinkhorn(torch.nested.nested_tensor([S[0], S[0, :2]])), TypeError,
        ["scores", "nested"],
    ),
    "sparse prior": (
        lambda: sinkhorn(S, prior=torch.ones(3).to_sparse()), TypeError, ["prior", "sparse"]
    ),
    "epsilon 0": (lambda: sinkhorn(S, epsilon=0), ValueError, ["epsilon", "> 0", "0"]),
    "epsilon -1": (lambda: sinkhorn(S, epsilon=-1.0), ValueError, ["epsilon", "-1.0"]),
    "epsilon nan": (lambda: sinkhorn(S, epsilon=math.nan), ValueError, ["epsilon", "nan"]),
    "epsilon inf": (lambda: sinkhorn(S, epsilon=math.inf), ValueError, ["epsilon", "inf"]),
    "epsilon denormal": (lambda: sinkhorn(S, epsilon=1e-310), ValueError, ["epsilon", "1e-310"]),
    "epsilon tensor": (
        lambda: sinkhorn(S, epsilon=torch.tensor(0.05)), TypeError, ["epsilon", "tensor", "float"]
    ),
    "epsilon None": (lambda: sinkhorn(S, epsilon=None), TypeError, ["epsilon", "NoneType"]),
    "epsilon True": (lambda: sinkhorn(S, epsilon=True), TypeError, ["epsilon", "bool"]),
    "iterations 0": (lambda: sinkhorn(S, iterations=0), ValueError, ["iterations", ">= 1", "0"]),
    "iterations 2.0": (
        lambda: sinkhorn(S, iterations=2.0), (TypeError, ValueError), ["iterations", "2.0"]
    ),
    "iterations True": (
        lambda: sinkhorn(S, iterations=True), (TypeError, ValueError), ["iterations", "True"]
    ),
    "prior of a wrong length": (
        lambda: sinkhorn(S, prior=torch.ones(4) / 4), ValueError, ["prior", r"\(3,\)", r"\(4,\)"]
    ),
    "prior a list": (lambda: sinkhorn(S, prior=[1, 0, 0]), TypeError, ["prior", "list"]),
    "prior of integers": (
        lambda: sinkhorn(S, prior=torch.tensor([1, 0, 0])), TypeError, ["prior", "int64"]
    ),
    "prior sums to 3": (
        lambda: sinkhorn(S, prior=torch.ones(3)), ValueError, ["prior", "sum", "3"]
    ),
    "prior sums to 0.9": (lambda: sinkhorn(S, prior=UNIFORM * 0.9), ValueError, ["prior", "0.9"]),
    "prior negative": (
        lambda: sinkhorn(S, prior=torch.tensor([1.5, -0.5, 0.0])), ValueError,
        ["prior", "non-negative", "-0.5"],
    ),
    "prior nan": (lambda: sinkhorn(S, prior=UNIFORM * math.nan), ValueError, ["prior", "nan"]),
    "prior elsewhere": (
        lambda: sinkhorn(S, prior=UNIFORM.to("meta")), ValueError, ["prior", "meta", "cpu"]
    ),
    "a group that is not there": (
        lambda: sinkhorn(S, group="0"), ValueError, ["group", "init_process_group"]
    ),
    "start": (lambda: Assignment.sinkhorn(S, start="ones"), ValueError, ["start", "ones", "zero"]),
    "one factor": (lambda: Assignment.sinkhorn((S,)), TypeError, ["scores", "pair"]),
    "three factors": (lambda: Assignment.sinkhorn((S, S, S)), TypeError, ["scores", "pair"]),
    "widths differ": (
        lambda: Assignment.sinkhorn((S, S[:, :2])), ValueError, ["prototypes", r"\(4, 3\)", "width"]
    ),
    "types differ": (
        lambda: Assignment.sinkhorn((S, S.double())), TypeError, ["prototypes", "float64"]
    ),
    "devices differ": (
        lambda: Assignment.sinkhorn((S, S.to("meta"))), ValueError, ["prototypes", "meta", "cpu"]
    ),
    "no prototypes": (lambda: Assignment.sinkhorn((S, S[:0])), ValueError, ["prototypes", "empty"]),
    "temperature 0": (
        lambda: Assignment.softmax(S, temperature=0), ValueError, ["temperature", "> 0"]
    ),
    "temperature tensor": (
        lambda: Assignment.softmax(S, temperature=torch.ones(())), TypeError,
        ["temperature", "tensor"],
    ),
    "center of a wrong length": (
        lambda: Assignment.softmax(S, temperature=1.0, center=torch.ones(1, 3)), ValueError,
        ["center", r"\(3,\)", r"\(1, 3\)"],
    ),
    "center elsewhere": (
        lambda: Assignment.softmax(S, temperature=1.0, center=UNIFORM.to("meta")), ValueError,
        ["center", "meta", "cpu"],
    ),
    "center a float": (
        lambda: Assignment.softmax(S, temperature=1.0, center=0.1), TypeError, ["center", "float"]
    ),
    "targets with grad": (
        lambda: Assignment.from_dense(S.clone().requires_grad_()), ValueError,
        ["targets", "requires grad", "detach"],
    ),
    "targets a vector": (
        lambda: Assignment.from_dense(S[0]), ValueError, ["targets", r"\(3,\)"]
    ),
    "one row by number": (
        lambda: Assignment.from_dense(S)[0], TypeError, ["int", "slice"]
    ),
    "one row by a tensor": (
        lambda: Assignment.from_dense(S)[torch.tensor(0)], TypeError, [r"Tensor \(\)", "slice"]
    ),
    "no row": (lambda: Assignment.sinkhorn(S)[2:2], ValueError, ["none of 4 rows", "slice"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case) -> None:
    call, kind, words = REFUSED[case]
    with pytest.raises(kind) as caught:
        call()
    for word in words:
        caught.match(word)
