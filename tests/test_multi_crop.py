"""Every student crop against every teacher crop, against the sum over pairs as it is written."""

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

from ssl_fast.functional import Assignment, linear_soft_cross_entropy, multi_crop_cross_entropy

pytestmark = [pytest.mark.cpu_kernels, pytest.mark.usefixtures("poisoned")]

# How teachers come from scores (N, K): ours, and the same probabilities by formula.
TEACHERS = {
    "sinkhorn": (lambda s: Assignment.sinkhorn(s), lambda s: oracles.swav(s)),
    "centred": (
        lambda s: Assignment.softmax(s, temperature=0.04, center=s[0]),
        lambda s: oracles.centred(s, 0.04, s[0]),
    ),
    "dense": (lambda s: Assignment.from_dense(s.detach().abs()), lambda s: s.abs()),
}
# Teachers, students, skip_same.
CROPS = [(2, 4, True), (2, 4, False), (1, 1, False), (1, 3, True), (3, 3, True), (3, 2, True)]
# N, K, D: the last recomputes most of its logits.
SHAPES = [(1, 1, 1), (7, 3, 5), (67, 777, 16), (131, 1031, 2)]


def scores(n: int, k: int, dtype: torch.dtype = torch.float32, seed: int = 5) -> torch.Tensor:
    values = unit(n, 16, dtype=torch.float64, seed=seed) @ unit(k, 16, seed=6).double().T
    return values.to(dtype)


def crops(count: int, n: int, width: int, dtype: torch.dtype = torch.float32) -> list:
    """Of moderate norm, as embeddings and logits / temperature are."""
    return [normal(n, width, dtype=dtype, seed=10 + s) * 0.5 for s in range(count)]


def check(form, layout, shape, dtype, teachers, crop) -> None:
    """Ours against the formula: value, and the gradients of every crop and the prototypes."""
    (n, k, d), (t, s, skip) = shape, crop
    ours, formula = TEACHERS[teachers]
    lay = LAYOUTS[layout] if layout else lambda x: x
    held = [lay(scores(n, k, dtype, seed=5 + i)) for i in range(t)]
    if form == "linear":
        inputs = [*map(lay, crops(s, n, d, dtype)), lay(unit(k, d, dtype=dtype, seed=1))]
    else:
        inputs = list(map(lay, crops(s, n, k, dtype)))

    def split(x):
        return (x[:s], x[s], x[s + 1 :]) if form == "linear" else (x[:s], None, x[s:])

    def fused(*x):
        students, prototypes, given = split(x)
        targets = [ours(g) for g in given]
        return multi_crop_cross_entropy(
            list(students), targets, prototypes, temperature=0.2, skip_same=skip
        )

    def printed(*x):
        students, prototypes, given = split(x)
        return oracles.multi_crop(students, [formula(g) for g in given], prototypes, 0.2, skip)

    assert_right(fused, printed, [*inputs, *held], wrt=len(inputs), upstream=torch.tensor(-2.5))


@pytest.mark.parametrize("form", ["linear", "logits"])
@pytest.mark.parametrize(
    ("shape", "dtype", "teachers", "crop"),
    spread(SHAPES, list(DTYPES), list(TEACHERS), CROPS),
    ids=str,
)
def test_right(backend, form, shape, dtype, teachers, crop) -> None:
    check(form, None, shape, DTYPES[dtype], teachers, crop)


@pytest.mark.parametrize("form", ["linear", "logits"])
@pytest.mark.parametrize("crop", CROPS, ids=str)
def test_pairs(backend, form, crop) -> None:
    """Every count of crops, with and without the pairs of one and the same crop."""
    check(form, None, (9, 33, 4), torch.float32, "sinkhorn", crop)


@pytest.mark.parametrize("form", ["linear", "logits"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend, form, layout) -> None:
    check(form, layout, (7, 131, 6), torch.float32, "centred", (2, 3, True))


@pytest.mark.parametrize("form", ["linear", "logits"])
def test_several_tiles(backend, form) -> None:
    check(form, None, (150, 9001, 3), torch.float32, "sinkhorn", (2, 3, True))


def test_swav(backend) -> None:
    """2 + 6 crops, teachers factored: the scores are formed by tiles, in forward and backward."""
    students, prototypes = crops(8, 67, 4), unit(1031, 4, seed=1)
    teachers = [unit(67, 4, seed=20 + t) for t in range(2)]
    assert_right(
        lambda c, *x: multi_crop_cross_entropy(
            list(x), [Assignment.sinkhorn((z, c)) for z in teachers], c, temperature=0.1
        ),
        lambda c, *x: oracles.multi_crop(
            list(x), [oracles.swav(z.to(c) @ c.detach().T) for z in teachers], c, 0.1
        ),
        [prototypes, *students],
        wrt=9,
    )


def test_one_pair_is_linear_soft_cross_entropy(backend) -> None:
    x, c, q = normal(33, 8) * 0.5, unit(131, 8, seed=1), Assignment.sinkhorn(scores(33, 131))
    many = value_and_grads(
        lambda x, c: multi_crop_cross_entropy([x], [q], c, temperature=0.1, skip_same=False),
        [x, c], 2,
    )  # fmt: skip
    one = value_and_grads(
        lambda x, c: linear_soft_cross_entropy(x, c, q, temperature=0.1), [x, c], 2
    )
    for a, b in zip(many, one, strict=True):
        assert_relative(a, b.double(), 1e-6, tiny=2e-6 * float(b.abs().max()))


@pytest.mark.parametrize("crop", CROPS, ids=str)
def test_gradcheck(backend, crop) -> None:
    t, s, skip = crop
    teachers = [
        Assignment.softmax(scores(4, 5, torch.float64, seed=5 + i), temperature=0.3)
        for i in range(t)
    ]
    options = {"temperature": 0.7, "skip_same": skip}
    gradcheck(
        lambda c, *x: multi_crop_cross_entropy(list(x), teachers, c, **options),
        normal(5, 3, seed=1), *crops(s, 4, 3),
    )  # fmt: skip
    gradcheck(
        lambda *x: multi_crop_cross_entropy(list(x), teachers, None, **options), *crops(s, 4, 5)
    )


FAR = {
    "offset": lambda x: x + 1e4,
    "wide": lambda x: x * 1e4,
    "rows": lambda x: x + 1e4 * normal(len(x), 1, seed=3),
    "zeros": lambda x: x * 0,
    "identical": lambda x: x[:1].repeat(len(x), 1) * 1e3,
}


@pytest.mark.parametrize("case", FAR)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_far_logits(backend, case, dtype) -> None:
    students = [FAR[case](x).to(dtype) for x in crops(3, 7, 33)]
    given = [scores(7, 33, seed=5 + t) for t in range(2)]
    q = [oracles.swav(s.double()) for s in given]
    exact = value_and_grads(
        lambda *x: oracles.multi_crop(list(x), q, None, 0.5), [x.double() for x in students], 3
    )
    teachers = [Assignment.sinkhorn(s) for s in given]
    value, *grads = value_and_grads(
        lambda *x: multi_crop_cross_entropy(list(x), teachers, None, temperature=0.5), students, 3
    )
    assert_relative(value, exact[0], 1e-6)
    for grad, e in zip(grads, exact[1:], strict=True):
        tiny = 2e-6 if dtype != torch.float16 else 2e-6 + 2.0**-24
        assert_relative(grad, e, max(1e-6, torch.finfo(dtype).eps), tiny=tiny)


@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_far_products(backend, scale) -> None:
    """Embeddings whose logits reach 1e4, integers so that the products are exact; a zero row."""
    students = [x.mul(scale).round() for x in crops(3, 7, 8)]
    prototypes = normal(33, 8, seed=1).mul(scale).round()
    students[1][4], prototypes[5] = 0, 0
    q = [probabilities(7, 33, seed=t) for t in range(2)]
    exact = value_and_grads(
        lambda c, *x: oracles.multi_crop(list(x), [p.double() for p in q], c, 0.5),
        [x.double() for x in (prototypes, *students)],
        4,
    )
    teachers = [Assignment.from_dense(p) for p in q]
    found = value_and_grads(
        lambda c, *x: multi_crop_cross_entropy(list(x), teachers, c, temperature=0.5),
        [prototypes, *students],
        4,
    )
    for a, e in zip(found, exact, strict=True):
        assert_relative(a, e, 1e-6, tiny=1e-6 * float(e.abs().max()))


def test_some_crops_frozen(backend) -> None:
    """Crops and prototypes that need no gradient get none; the others' are unchanged."""
    students, prototypes = crops(3, 7, 4), unit(33, 4, seed=1)
    teachers = [Assignment.sinkhorn(scores(7, 33))]
    for inputs, c in ((students, prototypes), (crops(3, 7, 33), None)):
        every = value_and_grads(
            lambda *x, c=c: multi_crop_cross_entropy(list(x), teachers, c, temperature=0.1),
            inputs, 3,
        )  # fmt: skip
        first = value_and_grads(
            lambda *x, c=c: multi_crop_cross_entropy(list(x), teachers, c, temperature=0.1),
            inputs, 2,
        )  # fmt: skip
        assert all(same_bits(a, b) for a, b in zip(first, every[:3], strict=True))


def test_autocast_takes_crops_of_two_types(backend) -> None:
    x, prototypes = unit(5, 4), unit(9, 4, seed=1)
    held = [Assignment.softmax(scores(5, 9), temperature=0.1)]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = multi_crop_cross_entropy([x, x.bfloat16()], held, prototypes, temperature=0.1)
        alike = multi_crop_cross_entropy([x, x], held, prototypes, temperature=0.1)
    assert same_bits(mixed, alike)


def test_backward_twice(backend) -> None:
    teachers = [Assignment.sinkhorn(scores(67, 257))]
    for width, c in ((64, unit(257, 64)), (1, unit(257, 1)), (257, None)):
        inputs = [x.requires_grad_() for x in crops(3, 67, width)]
        value = multi_crop_cross_entropy(inputs, teachers, c, temperature=0.1)
        first = torch.autograd.grad(value, inputs, retain_graph=True)
        torch.autograd.grad(-3 * value, inputs, retain_graph=True)
        second = torch.autograd.grad(value, inputs)
        assert all(same_bits(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory_of_linear(backend, dtype) -> None:
    """Kept: the bytes of inputs and gradients, and statistics; nothing of N x K is formed."""
    n, k, d, s = 256, 4096, 4, 8
    students, prototypes = crops(s, n, d, dtype), unit(k, d, dtype=dtype, seed=1)
    teachers = [
        Assignment.sinkhorn((unit(n, d, seed=2 + t), unit(k, d, seed=9)), iterations=1)
        for t in range(2)
    ]
    inputs = [x.requires_grad_() for x in (*students, prototypes)]
    given = [x for q in teachers for x in (q.z, q.prototypes, q.row, q.col)]
    with Allocations() as watch:
        with Saved(*inputs, *given) as saved:
            value = multi_crop_cross_entropy(inputs[:s], teachers, inputs[s], temperature=0.1)
        value.backward()
    operands = 2 * sum(x.numel() * x.element_size() for x in inputs)
    assert 0 < saved.nbytes() <= operands + 8 * (4 * s * n + 64)
    assert watch.largest() <= s * n * k // 8
    assert all(bool(x.grad.isfinite().all()) for x in inputs)


def test_memory_of_logits(backend) -> None:
    """Kept beside the inputs: 4 numbers a row. Formed: gradients and tiles of targets."""
    students = [x.requires_grad_() for x in crops(10, 16, 4096)]
    teachers = [
        Assignment.softmax(scores(16, 4096, seed=5 + t), temperature=0.04) for t in range(2)
    ]
    given = [x for q in teachers for x in (q.values, q.row)]
    with Allocations() as watch:
        with Saved(*students, *given) as saved:
            value = multi_crop_cross_entropy(students, teachers, None, temperature=0.1)
        value.backward()
    assert saved.nbytes() <= 8 * (4 * 10 * 16 + 64)
    assert watch.largest() <= 16 * 4096


X, C = torch.ones(4, 2), torch.ones(3, 2)
Q = Assignment.from_dense(torch.full((4, 3), 1 / 3))


def call(students=(X, X), teachers=(Q,), prototypes=C, **options):
    options = {"temperature": 0.1, **options}
    return multi_crop_cross_entropy(students, teachers, prototypes, **options)


REFUSED = {
    "students a tensor": (lambda: call(X), TypeError, ["students", "list", "Tensor"]),
    "no students": (lambda: call([]), ValueError, ["students", "at least one"]),
    "a student that is a list": (lambda: call([X, [1.0]]), TypeError, [r"students\[1\]", "list"]),
    "crops of other samples": (
        lambda: call([X, X[:3]]), ValueError, [r"students\[1\]", r"\(3, 2\)", r"\(4, 2\)"]
    ),
    "crops of another type": (
        lambda: call([X, X.double()]), TypeError, [r"students\[1\]", "float64"]
    ),
    "prototypes of another width": (
        lambda: call(prototypes=torch.ones(3, 5)), ValueError, ["prototypes", r"\(3, 5\)"]
    ),
    "teachers an assignment": (lambda: call(teachers=Q), TypeError, ["teachers", "list"]),
    "no teachers": (lambda: call(teachers=[]), ValueError, ["teachers", "at least one"]),
    "a dense teacher": (
        lambda: call(teachers=[torch.full((4, 3), 1 / 3)]), TypeError,
        [r"teachers\[0\]", "Tensor", "from_dense"],
    ),
    "teachers of other samples": (
        lambda: call(teachers=[Q, Q[:2]]), ValueError, [r"teachers\[1\]", "2 samples", "4 samples"]
    ),
    "teachers of other prototypes": (
        lambda: call(prototypes=torch.ones(5, 2)), ValueError,
        [r"teachers\[0\]", "3 prototypes", "5 prototypes"],
    ),
    "embeddings without prototypes": (
        lambda: call(prototypes=None), ValueError, [r"teachers\[0\]", "3 prototypes", "2"]
    ),
    "nothing to pair": (lambda: call([X]), ValueError, ["pair", "skip_same=False"]),
    "temperature 0": (lambda: call(temperature=0), ValueError, ["temperature", "> 0"]),
    "no group": (lambda: call(group="0"), ValueError, ["group", "init_process_group"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case) -> None:
    refused, kind, words = REFUSED[case]
    with pytest.raises(kind) as caught:
        refused()
    for word in words:
        caught.match(word)
