"""ReSALoss against three hand-written lines, InfoNCE, and the released code's formula."""

import oracles
import pytest
import torch
from checks import (
    DTYPES,
    assert_relative,
    assert_right,
    gradcheck,
    same_bits,
    unit,
    value_and_grads,
)

from ssl_fast.functional import Assignment, linear_soft_cross_entropy
from ssl_fast.losses import ReSALoss

pytestmark = [pytest.mark.cpu_kernels, pytest.mark.usefixtures("poisoned")]


def views(count: int, n: int, d: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> list:
    """`count` views of n unit rows, all near one another as a momentum encoder's are."""
    common = unit(n, d, dtype=torch.float64, seed=seed)
    noise = [unit(n, d, dtype=torch.float64, seed=seed + 1 + i) for i in range(count)]
    return [torch.nn.functional.normalize(common + x, dim=1).to(dtype) for x in noise]


def test_hand_written(backend) -> None:
    """The three lines that ReSALoss replaces print the same number."""
    (z0, z1), (m0, m1) = views(2, 64, 32), views(2, 64, 32, seed=9)
    h, h_m = views(2, 64, 48, seed=5)

    q = oracles.swav(h @ h_m.T)
    log_p = [(z @ m.T / 0.4).log_softmax(dim) for z, m in ((z0, m1), (z1, m0)) for dim in (0, 1)]
    loss = -sum((q * lp).sum(1).mean() for lp in log_p) / 4

    assert abs(float(ReSALoss()([z0, z1], [m0, m1], h, h_m)) - float(loss)) < 2e-6


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(
    ("online", "momentum", "n", "d"),
    [(2, 2, 67, 16), (5, 2, 31, 7), (1, 2, 17, 3), (2, 1, 17, 3), (2, 2, 1, 1)],
)
def test_right(backend, online, momentum, n, d, dtype, symmetric) -> None:
    """The mean over pairs q != v, for numbers of views that leave one, some or many pairs."""
    options = {"temperature": 0.3, "epsilon": 0.08, "iterations": 4, "symmetric": symmetric}
    loss = ReSALoss(**options)

    def split(function, embedded, **more):
        return function(
            list(embedded[:online]), list(embedded[online:-2]), embedded[-2], embedded[-1], **more
        )

    h = views(2, n, 2 * d, dtype, seed=5)
    assert_right(
        lambda *z: split(loss, z),
        lambda *z: split(oracles.resa, z, **options),
        [*views(online, n, d, dtype), *views(momentum, n, d, dtype, seed=9), *h],
    )


@pytest.mark.parametrize(
    ("n", "magnitude"),
    [(33, 40.0), (33, 1e4), (600, 1.0), (600, 40.0), (1100, 1.0)],
    ids=["wide", "huge", "one tile", "one wide tile", "tiles"],
)
def test_sizes_and_spans(backend, n, magnitude) -> None:
    """Tiles of logits that are turned into gradients at once, with one exponential or with two."""
    embedded = views(2, n, 4) + views(2, n, 4, seed=9)
    h = views(2, n, 4, seed=5)
    assert_right(
        lambda a, b, c, d: ReSALoss()([a, b], [c, d], *h),
        lambda a, b, c, d: oracles.resa([a, b], [c, d], *[x.to(a.dtype) for x in h]),
        [magnitude * z for z in embedded],
        wrt=4,
    )


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_gradients_reach_every_view(backend, dtype, symmetric) -> None:
    embedded = views(2, 67, 16, dtype) + views(2, 67, 16, dtype, seed=9)
    h = views(2, 67, 8, dtype, seed=5)
    assert_right(
        lambda a, b, c, d, *h: ReSALoss(symmetric=symmetric)([a, b], [c, d], *h),
        lambda a, b, c, d, *h: oracles.resa([a, b], [c, d], *h, symmetric=symmetric),
        embedded + h,
        wrt=4,
        upstream=torch.tensor(-1.5),
    )


def test_gradcheck(backend) -> None:
    h = views(2, 5, 3, torch.float64, seed=5)
    inputs = views(2, 5, 3) + views(2, 5, 3, seed=9)
    gradcheck(lambda a, b, c, d: ReSALoss()([a, b], [c, d], *h), *inputs)
    gradcheck(lambda a, b, c, d: ReSALoss(symmetric=False)([a, b], [c, d], *h), *inputs)


def test_view_is_not_compared_with_itself(backend) -> None:
    """With one momentum view, only the other embedding counts."""
    (z0, z1), (m0,) = views(2, 17, 8), views(1, 17, 8, seed=9)
    h = views(2, 17, 8, seed=5)
    value, d_z0, d_z1 = value_and_grads(
        lambda a, b: ReSALoss()([a, b], [m0], *h) + 0 * a.sum(), [z0, z1], 2
    )
    assert bool((d_z0 == 0).all()) and bool((d_z1 != 0).any())
    assert same_bits(value, ReSALoss()([z0 * 3, z1], [m0], *h))
    z0.requires_grad_()
    loss = ReSALoss()([z0, z1], [m0], *h)
    assert not loss.requires_grad
    loss = ReSALoss()([z0, z1.requires_grad_()], [m0], *h)
    assert torch.autograd.grad(loss, [z0, z1], allow_unused=True)[0] is None


def test_encodings_are_constants(backend) -> None:
    h, h_m = (x.requires_grad_() for x in views(2, 17, 8, seed=5))
    z = [x.requires_grad_() for x in views(2, 17, 8)]
    ReSALoss()(z, views(2, 17, 8, seed=9), h, h_m).backward()
    assert h.grad is None and h_m.grad is None
    assert all(bool((x.grad != 0).any()) for x in z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n", [1, 2, 67])
def test_identity_is_info_nce(backend, n, dtype) -> None:
    """An identity assignment: CLIP's loss and gradients."""
    x, y = unit(n, 16, dtype=dtype), unit(n, 16, dtype=dtype, seed=1)
    identity = Assignment.from_dense(torch.eye(n, dtype=dtype))
    assert_right(
        lambda x, y: linear_soft_cross_entropy(x, y, identity, temperature=0.2, symmetric=True),
        lambda x, y: oracles.info_nce(x, y, 0.2),
        [x, y],
        wrt=2,
    )


def test_orthonormal_encodings_are_info_nce(backend) -> None:
    """Orthonormal encodings at a tiny epsilon make Sinkhorn's answer the identity."""
    z, m = views(2, 32, 16), views(2, 32, 16, seed=9)
    expected = (
        oracles.info_nce(z[0].double(), m[1].double(), 0.4)
        + oracles.info_nce(z[1].double(), m[0].double(), 0.4)
    ) / 2
    loss = ReSALoss(epsilon=1e-3)(z, m, torch.eye(32), torch.eye(32))
    assert_relative(loss, expected, 1e-6)


def test_rows_alone_is_the_released_code(backend) -> None:
    """mean over i of -sum_j A_ij log_softmax(s)_ij, one assignment in both directions."""
    z, m = views(2, 33, 8, torch.float64), views(2, 33, 8, torch.float64, seed=9)
    h = views(2, 33, 8, torch.float64, seed=5)
    assignment = oracles.swav(h[0] @ h[1].T)
    terms = [
        torch.sum(-assignment * (z[q] @ m[1 - q].T / 0.4).log_softmax(1), 1).mean() for q in (0, 1)
    ]
    rows = ReSALoss(symmetric=False)(z, m, *h)
    assert_relative(rows, sum(terms) / 2, 1e-12)
    assert abs(float(rows - ReSALoss()(z, m, *h))) > 1e-4


@pytest.mark.parametrize("scale", [0.0, 1e2])
def test_collapsed(backend, scale) -> None:
    """Equal rows, zero or of norm 100: the loss is log N, and gradients cancel to 0."""
    same = [scale * unit(1, 8).repeat(33, 1) for _ in range(2)]
    value, *grads = value_and_grads(lambda a, b: ReSALoss()([a, b], same, *same), same, 2)
    assert_relative(value, torch.tensor(33.0).log().double(), 1e-6)
    terms = scale / 0.4 / 33  # of a row: sum_j P_ij w_j / (temperature N)
    for grad in grads:
        assert float(grad.abs().max()) <= 4 * torch.finfo(torch.float32).eps * terms


def test_half_inputs_need_no_copies(backend) -> None:
    """bfloat16 views give the loss of their float32 copies; gradients come back in bfloat16."""
    z, m = views(2, 67, 16, torch.bfloat16), views(2, 67, 16, torch.bfloat16, seed=9)
    h = views(2, 67, 16, torch.bfloat16, seed=5)
    value, grad = value_and_grads(lambda a: ReSALoss()([a, z[1]], m, *h), z[:1], 1)
    wide = ReSALoss()([x.float() for x in z], [x.float() for x in m], *[x.float() for x in h])
    assert value.dtype == torch.float32 and grad.dtype == torch.bfloat16
    assert_relative(value, wide.double(), 1e-6)


def test_same_bits_every_run(backend) -> None:
    inputs = (views(2, 67, 16), views(2, 67, 16, seed=9), *views(2, 67, 16, seed=5))
    assert same_bits(ReSALoss()(*inputs), ReSALoss()(*inputs))


def test_is_a_module_without_state() -> None:
    loss = ReSALoss(temperature=0.3, epsilon=0.07, iterations=5, symmetric=False)
    assert isinstance(loss, torch.nn.Module)
    assert not list(loss.parameters()) and not loss.state_dict()
    for word in ("0.3", "0.07", "5", "False"):
        assert word in repr(loss)


Z = [torch.zeros(4, 3), torch.zeros(4, 3)]
H = torch.zeros(4, 5)
REFUSED = {
    "a tensor for views": (lambda: ReSALoss()(Z[0], Z, H, H), TypeError, ["embeddings", "list"]),
    "one view of each": (
        lambda: ReSALoss()(Z[:1], Z[:1], H, H), ValueError, ["different views", "1 embeddings"]
    ),
    "no view": (lambda: ReSALoss()([], Z, H, H), ValueError, ["0 embeddings", "2 momentum"]),
    "temperature 0": (
        lambda: ReSALoss(temperature=0.0)(Z, Z, H, H), ValueError, ["temperature", "> 0"]
    ),
    "temperature tensor": (
        lambda: ReSALoss(temperature=torch.tensor(0.4))(Z, Z, H, H), TypeError,
        ["temperature", "tensor"],
    ),
    "epsilon -1": (lambda: ReSALoss(epsilon=-1)(Z, Z, H, H), ValueError, ["epsilon", "-1"]),
    "iterations 0": (lambda: ReSALoss(iterations=0)(Z, Z, H, H), ValueError, ["iterations", "0"]),
    "fewer encodings": (
        lambda: ReSALoss()(Z, Z, H[:2], H[:2]), ValueError, [r"\(2, 2\)", r"\(4, 4\)"]
    ),
    "widths differ": (
        lambda: ReSALoss()(Z, [z[:, :2] for z in Z], H, H), ValueError, [r"\(4, 3\)", r"\(4, 2\)"]
    ),
    "rows differ": (
        lambda: ReSALoss()(Z, [z[:3] for z in Z], H, H[:3]), ValueError, ["square", r"\(4, 3\)"]
    ),
    "integers": (
        lambda: ReSALoss()([z.long() for z in Z], Z, H, H), TypeError, ["int64"]
    ),
    "a group that is not there": (
        lambda: ReSALoss(group="0")(Z, Z, H, H), ValueError, ["group", "init_process_group"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case) -> None:
    call, kind, words = REFUSED[case]
    with pytest.raises(kind) as caught:
        call()
    for word in words:
        caught.match(word)
