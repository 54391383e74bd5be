"""DINOLoss and IBOTLoss against the formulas, Lightly's classes, their centre and schedule."""

import itertools

import oracles
import pytest
import torch
from checks import (
    DTYPES,
    Allocations,
    Saved,
    assert_relative,
    assert_right,
    error,
    normal,
    same_bits,
    spread,
    unit,
    value_and_grads,
)
from test_swav import crops

from ssl_fast.functional import power_law_prior
from ssl_fast.functional._teacher import mean_scores
from ssl_fast.losses import DINOLoss, IBOTLoss

pytestmark = [pytest.mark.cpu_kernels, pytest.mark.usefixtures("poisoned")]


def centred(loss, seed: int = 90):
    """The loss with a centre that matters."""
    loss.center.copy_(0.3 * normal(1, loss.num_prototypes, seed=seed))
    return loss


SHAPES = [(2, 2, 33, 8, 31), (5, 2, 17, 7, 130), (2, 1, 9, 3, 5), (3, 2, 1, 3, 1)]


@pytest.mark.parametrize("source", ["embeddings", "own prototypes", "logits"])
@pytest.mark.parametrize(("shape", "dtype"), spread(SHAPES, list(DTYPES.values())), ids=str)
def test_right(backend, shape, dtype, source) -> None:
    """Gradients of students and prototypes; the teacher's prototypes, own or not, are constants."""
    students, teachers, n, d, k = shape
    loss = centred(DINOLoss(k, temperature=0.2, teacher_temperature=0.07)).eval()
    z = crops(students, n, d, dtype)
    t = crops(teachers, n, d, dtype, seed=30)
    c, own = unit(k, d, dtype=dtype, seed=50), unit(k, d, dtype=dtype, seed=51)
    options = {"temperature": 0.2, "teacher_temperature": 0.07, "center": loss.center[0]}
    if source == "logits":
        z, t = ([x.to(dtype) for x in oracle_scores(v, c)] for v in (z, t))
        assert_right(
            lambda *x: loss(list(x[:students]), list(x[students:])),
            lambda *x: oracles.dino_loss(list(x[:students]), list(x[students:]), **options),
            [*z, *t], students, torch.tensor(-1.5),
        )  # fmt: skip
        return
    teacher_prototypes = own if source == "own prototypes" else None

    def ours(*x):
        return loss(list(x[:students]), t, x[students], teacher_prototypes)

    def formula(*x):
        weight = x[students]
        constant = (weight if teacher_prototypes is None else own.to(weight)).detach()
        logits = [v @ weight.T for v in x[:students]]
        return oracles.dino_loss(logits, [v.to(weight) @ constant.T for v in t], **options)

    assert_right(ours, formula, [*z, c], students + 1, torch.tensor(-1.5))


def oracle_scores(views: list, c: torch.Tensor) -> list:
    return [z.double() @ c.double().T for z in views]


def test_defaults_are_the_official_ones() -> None:
    loss = DINOLoss()
    assert loss.num_prototypes == 65536 and loss.center.shape == (1, 65536)
    assert (loss.temperature, loss.teacher_temperature, loss.center_momentum) == (0.1, 0.04, 0.9)
    assert loss.warmup_epochs == 0 and loss.centering == "mean"
    assert list(loss.state_dict()) == ["center"]


@pytest.mark.parametrize("source", ["embeddings", "logits"])
def test_centre_is_the_moving_average(backend, source) -> None:
    """center <- .9 center + .1 mean, of raw scores, after use, from zero; frozen in eval mode."""
    loss = DINOLoss(11)
    expected = torch.zeros(11, dtype=torch.float64)
    for step in range(3):
        z, t, c = crops(2, 7, 5), crops(2, 7, 5, seed=9 + step), unit(11, 5, seed=50 + step)
        logits, scores = [v @ c.T for v in z], [v.double() @ c.double().T for v in t]
        before = loss.center.clone()
        value = (
            loss(z, t, c) if source == "embeddings" else loss(logits, [s.float() for s in scores])
        )
        exact = oracles.dino_loss([x.double() for x in logits], scores, center=before[0].double())
        assert_relative(value, exact, 1e-5)
        expected = 0.9 * expected + 0.1 * torch.cat(scores).mean(0)
        assert error(loss.center[0], expected) < 1e-7
    frozen = loss.center.clone()
    loss.eval()(z, t, c)
    assert same_bits(loss.center, frozen)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_centre_of_half_scores(dtype) -> None:
    """Summed in float32: 4096 equal half rows do not stop growing at 256."""
    z, c = torch.full((4096, 2), 0.1, dtype=dtype), torch.ones(9, 2, dtype=dtype)
    exact = 2 * z[0, 0].double()
    for found in (mean_scores([z, z], c, ""), mean_scores([z @ c.T, z @ c.T], None, "")):
        assert found.dtype == torch.float32
        assert_relative(found, exact.expand(9), 4e-3)  # the scores' own rounding
    assert_relative(mean_scores([z], c, ""), exact.expand(9), 1e-6)


def test_centre_of_unequal_teachers() -> None:
    """The mean over rows, not of the crops' means."""
    z, c = [unit(3, 4), unit(9, 4, seed=1)], unit(5, 4, seed=2)
    exact = (torch.cat(z).double() @ c.double().T).mean(0)
    assert error(mean_scores(z, c, ""), exact) < 1e-7


@pytest.mark.parametrize("source", ["embeddings", "logits"])
def test_lightly(source) -> None:
    """Three steps of Lightly's class: the same losses, gradients and centres."""
    lightly = pytest.importorskip("lightly.loss")
    theirs, loss = lightly.DINOLoss(31, warmup_teacher_temp_epochs=1), DINOLoss(31)
    for step in range(3):
        z, t, c = crops(4, 9, 8, seed=step), crops(2, 9, 8, seed=30 + step), unit(31, 8, seed=50)

        def their_loss(*x, t=t):
            return theirs([v @ x[4].detach().T for v in t], [v @ x[4].T for v in x[:4]])

        def our_loss(*x, t=t):
            if source == "embeddings":
                return loss(list(x[:4]), t, x[4])
            return loss([v @ x[4].T for v in x[:4]], [v @ x[4].T for v in t])

        expected = value_and_grads(their_loss, [*z, c], 5)
        found = value_and_grads(our_loss, [*z, c], 5)
        for a, b in zip(found, expected, strict=True):
            assert error(a, b) <= 5e-6 * float(b.abs().max())
        assert error(loss.center.flatten(), theirs.center.flatten()) < 1e-7


def test_schedule() -> None:
    """numpy.linspace over the warm-up, then constant; a call may override it."""
    loss = DINOLoss(5, teacher_temperature=0.07, warmup_teacher_temperature=0.04, warmup_epochs=4)
    official = [*torch.linspace(0.04, 0.07, 4, dtype=torch.float64).tolist(), 0.07, 0.07]
    assert [loss.temperature_at(e) for e in range(6)] == pytest.approx(official, rel=1e-12)
    assert loss.temperature_at(None) == 0.07
    one = DINOLoss(5, teacher_temperature=0.07, warmup_epochs=1)
    assert [one.temperature_at(e) for e in range(2)] == [0.04, 0.07]
    z, c = crops(2, 7, 3), unit(5, 3, seed=50)
    loss.eval()
    by_epoch = loss(z, z, c, epoch=1)
    assert same_bits(by_epoch, loss(z, z, c, teacher_temperature=loss.temperature_at(1)))
    assert error(by_epoch, loss(z, z, c)) > 1e-3
    with pytest.raises(ValueError, match="epoch"):
        loss.temperature_at(-1)


@pytest.mark.parametrize("order", ["fixed", "sorted"])
@pytest.mark.parametrize("source", ["embeddings", "logits"])
def test_sinkhorn_centring(backend, source, order) -> None:
    """One Sinkhorn over the rows of all teacher crops (DINOv2); the centre stays as it was."""
    prior = power_law_prior(12, 1.0)[torch.randperm(12)]
    loss = DINOLoss(12, centering="sinkhorn", prior=prior, prior_order=order, iterations=4)
    z, t, c = crops(4, 9, 5), crops(2, 9, 5, seed=30), unit(12, 5, seed=50)

    def ours(*x):
        if source == "embeddings":
            return loss(list(x[:4]), t, x[4])
        return loss([v @ x[4].T for v in x[:4]], [v @ x[4].T for v in t])

    def formula(*x):
        scores = torch.cat(t).to(x[0]) @ x[4].detach().T
        share = oracles.sorted_prior(scores, prior, 0.04) if order == "sorted" else prior
        q = oracles.sinkhorn(scores, 0.04, 4, share).split(9)
        pairs = [(i, v) for i, v in itertools.product(range(2), range(4)) if i != v]
        return sum(oracles.cross_entropy(x[v] @ x[4].T, q[i], 0.1) for i, v in pairs) / len(pairs)

    assert_right(ours, formula, [*z, c], 5)
    assert not loss.center.any()


def test_checkpoint() -> None:
    """The centre survives, also from the official code's state; the next loss is the same bits."""
    z, t, c = crops(2, 7, 5), crops(2, 7, 5, seed=9), unit(11, 5, seed=50)
    for first, second in ((DINOLoss(11), DINOLoss(11)), (IBOTLoss(11), IBOTLoss(11))):
        mask = torch.ones(1, 7, dtype=torch.bool)

        def run(loss, mask=mask):
            return loss(z, t, c) if isinstance(loss, DINOLoss) else loss(z[0], t[0], mask, c)

        run(first)
        second.load_state_dict({"center": first.state_dict()["center"].clone()})
        assert same_bits(run(first), run(second)) and same_bits(first.center, second.center)


@pytest.mark.parametrize("case", ["scores of 1e4", "one image", "collapsed", "zero rows"])
@pytest.mark.parametrize("centering", ["mean", "sinkhorn"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_finite(backend, case, centering, dtype) -> None:
    """Teacher temperature .04 in half precision included; after three steps, too."""
    z, c = crops(3, 9, 6), unit(7, 6, seed=50)
    if case == "scores of 1e4":
        c = c * 1e4
    elif case == "one image":
        z = [v[:1] for v in z]
    elif case == "collapsed":
        z = [z[0][:1].repeat(9, 1)] * 3
    else:
        z = [v * 0 for v in z]
    inputs = [x.to(dtype) for x in (*z, c)]
    loss = DINOLoss(7, centering=centering)
    for _ in range(3):
        found = value_and_grads(lambda *x: loss(list(x[:3]), list(x[:2]), x[3]), inputs, 4)
        assert all(bool(x.isfinite().all()) for x in found)
    assert bool(loss.center.isfinite().all())


@pytest.mark.parametrize("centering", ["mean", "sinkhorn"])
def test_no_dense_matrix(backend, centering) -> None:
    """Neither scores, targets nor logits, nor for the centre: tiles of at most half of N x K."""
    n, d, k = 1024, 32, 4096
    z = [x.requires_grad_() for x in crops(3, n, d)]
    t, c, own = crops(2, n, d, seed=30), unit(k, d, seed=50).requires_grad_(), unit(k, d, seed=51)
    loss = DINOLoss(k, centering=centering)
    with Allocations() as watch, Saved(*z, c, *t, own) as saved:
        loss(z, t, c, own).backward()
    assert watch.largest() <= n * k // 2
    inputs = sum(4 * x.numel() for x in (*z, c, *t, own))
    assert saved.nbytes() <= 2 * inputs + 64 * (3 * n + k)


def masked(images: int, height: int, width: int) -> torch.Tensor:
    """(B, H, W): as many masked tokens as the image's number, so that the first has none."""
    mask = torch.zeros(images, height * width, dtype=torch.bool)
    for i in range(images):
        mask[i, torch.randperm(height * width)[: min(i, height * width)]] = True
    return mask.view(images, height, width)


@pytest.mark.parametrize("source", ["embeddings", "logits"])
@pytest.mark.parametrize("centering", ["mean", "sinkhorn"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_ibot(backend, dtype, centering, source) -> None:
    """Every image weighs the same, whatever its number of masked tokens."""
    mask, d, k = masked(6, 3, 2), 7, 13
    m = int(mask.sum())
    s, t = unit(m, d, dtype=dtype), unit(m, d, dtype=dtype, seed=1)
    c = unit(k, d, dtype=dtype, seed=50)
    loss = centred(IBOTLoss(k, centering=centering, teacher_temperature=0.07)).eval()

    def target(scores):
        if centering == "sinkhorn":
            return oracles.sinkhorn(scores.detach(), 0.07)
        return oracles.centred(scores.detach(), 0.07, loss.center[0])

    if source == "logits":
        s, t = s @ c.T, t @ c.T
        assert_right(
            lambda s, t: loss(s, t, mask),
            lambda s, t: oracles.ibot_loss(s, target(t), mask),
            [s, t], 1, torch.tensor(-1.5),
        )  # fmt: skip
        return
    assert_right(
        lambda s, c: loss(s, t, mask, c),
        lambda s, c: oracles.ibot_loss(s @ c.T, target(t.to(c) @ c.T), mask),
        [s, c], 2, torch.tensor(-1.5),
    )  # fmt: skip


def test_ibot_lightly() -> None:
    """Three steps of Lightly's IBOTPatchLoss: the same losses and centres."""
    lightly = pytest.importorskip("lightly.loss")
    theirs, loss = lightly.IBOTPatchLoss(13), IBOTLoss(13)
    for step in range(3):
        mask = masked(6, 3, 3)
        m = int(mask.sum())
        s, t, c = unit(m, 7, seed=step), unit(m, 7, seed=10 + step), unit(13, 7, seed=50)
        expected = theirs(t @ c.T, s @ c.T, mask)
        assert_relative(loss(s, t, mask, c), expected.double(), 2e-6)
        assert error(loss.center, theirs.center.value) < 1e-7


def test_ibot_full_masks_are_the_plain_mean(backend) -> None:
    """All tokens masked: the cross-entropy's mean over tokens."""
    mask = torch.ones(3, 5, dtype=torch.bool)
    s, t, c = unit(15, 7), unit(15, 7, seed=1), unit(13, 7, seed=50)
    plain = oracles.cross_entropy(
        (s @ c.T).double(), oracles.centred((t @ c.T).double(), 0.04), 0.1
    )
    assert_relative(IBOTLoss(13)(s, t, mask, c), plain, 2e-6)


def test_ibot_no_dense_matrix(backend) -> None:
    n, d, k = 1024, 32, 4096
    s, t = unit(n, d).requires_grad_(), unit(n, d, seed=1)
    c = unit(k, d, seed=50).requires_grad_()
    loss, mask = IBOTLoss(k), torch.ones(8, n // 8, dtype=torch.bool)
    with Allocations() as watch, Saved(s, t, c) as saved:
        loss(s, t, mask, c).backward()
    assert watch.largest() <= n * k // 4
    assert saved.nbytes() <= 2 * 4 * (2 * n + k) * d + 64 * (2 * n + k)


Z, C, M = [torch.zeros(4, 3), torch.zeros(4, 3)], torch.zeros(5, 3), torch.ones(1, 4).bool()
L = torch.zeros(4, 5)
REFUSED = {
    "a tensor for students": (
        lambda: DINOLoss(5)(torch.zeros(8, 3), Z, C), TypeError, ["students", "list", "chunk"]
    ),
    "a tensor for teachers": (lambda: DINOLoss(5)(Z, Z[0], C), TypeError, ["teachers", "list"]),
    "one crop of each": (lambda: DINOLoss(5)(Z[:1], Z[:1], C), ValueError, ["pair"]),
    "another number of prototypes": (
        lambda: DINOLoss(6)(Z, Z, C), ValueError, ["num_prototypes=6", r"\(5, 3\)"]
    ),
    "another number of logits": (
        lambda: DINOLoss(6)([L, L], [L, L]), ValueError, ["num_prototypes=6", r"\(4, 5\)"]
    ),
    "teacher and student of different D": (
        lambda: DINOLoss(5)(Z, [z[:, :2] for z in Z], C), ValueError, [r"\(4, 2\)", r"\(5, 3\)"]
    ),
    "teacher prototypes alone": (
        lambda: DINOLoss(5)(Z, Z, None, C), ValueError, ["teacher_prototypes", "without"]
    ),
    "rows differ": (
        lambda: DINOLoss(5)(Z, [z[:3] for z in Z], C), ValueError, ["3 samples", "4 samples"]
    ),
    "centering": (lambda: DINOLoss(5, centering="max"), ValueError, ["centering", "sinkhorn"]),
    "prior without sinkhorn": (
        lambda: DINOLoss(5, prior="power_law"), ValueError, ["prior", 'centering="sinkhorn"']
    ),
    "center_momentum": (
        lambda: DINOLoss(5, center_momentum=1.5), ValueError, ["center_momentum", "1.5"]
    ),
    "teacher_temperature 0": (
        lambda: DINOLoss(5, teacher_temperature=0), ValueError, ["teacher_temperature", "0"]
    ),
    "warmup_epochs": (lambda: DINOLoss(5, warmup_epochs=-1), ValueError, ["warmup_epochs", "-1"]),
    "mask of numbers": (
        lambda: IBOTLoss(5)(Z[0], Z[0], M.float(), C), TypeError, ["mask", "bool", "float32"]
    ),
    "mask of one image": (lambda: IBOTLoss(5)(Z[0], Z[0], M[0], C), TypeError, ["mask", r"\(4,\)"]),
    "mask that does not match": (
        lambda: IBOTLoss(5)(Z[0], Z[0], M[:, :3], C), ValueError, ["3 tokens", "4 rows", "mask"]
    ),
    "teacher tokens that do not match": (
        lambda: IBOTLoss(5)(Z[0], Z[0][:3], M, C), ValueError, [r"\(4, 3\)", r"\(3, 3\)"]
    ),
    "no masked token": (
        lambda: IBOTLoss(5)(Z[0][:0], Z[0][:0], ~M, C), ValueError, ["student", "non-empty"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case) -> None:
    call, kind, words = REFUSED[case]
    with pytest.raises(kind) as caught:
        call()
    for word in words:
        caught.match(word)
