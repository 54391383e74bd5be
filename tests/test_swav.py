"""SwAVLoss against the formula, Lightly's class, its queue, and priors fixed and sorted."""

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
    gradcheck,
    normal,
    same_bits,
    spread,
    unit,
    value_and_grads,
)

from ssl_fast.functional import Assignment, power_law_prior
from ssl_fast.functional._teacher import sorted_prior
from ssl_fast.losses import SwAVLoss

pytestmark = [pytest.mark.cpu_kernels, pytest.mark.usefixtures("poisoned")]


def crops(count: int, n: int, d: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> list:
    """Unit rows; crop v of image i lies near the other crops of image i."""
    common = unit(n, d, dtype=torch.float64, seed=seed)
    noise = [0.5 * unit(n, d, dtype=torch.float64, seed=seed + 1 + v) for v in range(count)]
    return [torch.nn.functional.normalize(common + x, dim=1).to(dtype) for x in noise]


def ours(loss: SwAVLoss):
    return lambda *z: loss(list(z[:-1]), z[-1])


def formula(**options):
    return lambda *z: oracles.swav_loss(list(z[:-1]), z[-1], **options)


SHAPES = [(2, 67, 16, 31), (5, 31, 7, 130), (3, 1, 3, 5), (2, 17, 1, 1)]  # crops, N, D, K


@pytest.mark.parametrize(("shape", "dtype"), spread(SHAPES, list(DTYPES.values())), ids=str)
def test_right(backend, shape, dtype) -> None:
    """Values and gradients of every crop and of the prototypes, which published code often cuts."""
    count, n, d, k = shape
    options = {"temperature": 0.2, "epsilon": 0.08, "iterations": 4}
    inputs = [*crops(count, n, d, dtype), unit(k, d, dtype=dtype, seed=50)]
    assert_right(
        ours(SwAVLoss(**options)), formula(**options), inputs, len(inputs), torch.tensor(-1.5)
    )


def test_defaults_are_the_official_ones() -> None:
    loss = SwAVLoss()
    assert (loss.temperature, loss.epsilon, loss.iterations) == (0.1, 0.05, 3)
    assert loss.assign_crops == (0, 1) and loss.queue is None and not loss.state_dict()


def test_gradcheck(backend) -> None:
    inputs = [*crops(3, 5, 3, torch.float64), unit(4, 3, dtype=torch.float64, seed=50)]
    # Assignments are constants: the derivative with respect to crop 2 alone sees none of them.
    gradcheck(lambda z: SwAVLoss()([*inputs[:2], z], inputs[3]), inputs[2])


@pytest.mark.parametrize("assign", [(0,), (1, 2), (2, 0), (0, 1, 2)], ids=str)
def test_assigned_crops(backend, assign) -> None:
    inputs = [*crops(3, 17, 8), unit(9, 8, seed=50)]
    loss = SwAVLoss(assign_crops=assign)

    def by_hand(*z):  # an only assigned crop has a zero gradient
        return formula(assign_crops=assign)(*z) + 0 * z[0].sum()

    assert_right(ours(loss), by_hand, inputs, 4)


def test_lightly() -> None:
    """Lightly's SwaVLoss on the logits, 2 + 2 crops."""
    lightly = pytest.importorskip("lightly.loss")
    views, c = crops(4, 32, 16), unit(30, 16, seed=50)
    theirs = lightly.SwaVLoss()([z @ c.T for z in views[:2]], [z @ c.T for z in views[2:]])
    assert_relative(SwAVLoss()(views, c), theirs.double().squeeze(), 2e-6)


def test_lightly_queue() -> None:
    """A full queue, scored with today's prototypes; Lightly appends it, we put it in front."""
    lightly = pytest.importorskip("lightly.loss")
    views, c, queue = crops(3, 16, 8), unit(30, 8, seed=50), crops(2, 48, 8, seed=60)
    loss = SwAVLoss(queue_length=48, embedding_dim=8)
    loss.load_state_dict({"queue": torch.stack(queue)})
    theirs = lightly.SwaVLoss()(
        [z @ c.T for z in views[:2]], [z @ c.T for z in views[2:]], [q @ c.T for q in queue]
    )
    assert_relative(loss(views, c), theirs.double().squeeze(), 2e-6)


def test_queue_joins_once_full(backend) -> None:
    """Filled after use, newest first, scored with the prototypes of the day, used when full."""
    loss = SwAVLoss(queue_length=10, embedding_dim=6)
    batches = [crops(3, 5, 6, seed=10 * i) for i in range(4)]
    for step, views in enumerate(batches):
        c = unit(7, 6, seed=70 + step)
        queue = None
        if step >= 2:
            newest, older = batches[step - 1], batches[step - 2]
            queue = [torch.cat([newest[i], older[i]]) for i in range(2)]
            assert all(same_bits(loss.queue[i], queue[i]) for i in range(2))
        assert_right(ours(loss.eval()), formula(queue=queue), [*views, c], 4)
        loss.train()(views, c)
    without = oracles.swav_loss(views, c)
    assert error(without, oracles.swav_loss(views, c, queue=queue)) > 1e-3  # it does matter


def test_queue_shorter_than_a_batch_or_ragged(backend) -> None:
    """Rows that do not fit are dropped, oldest first; the queue is not used before it is full."""
    c = unit(7, 6, seed=50)
    short = SwAVLoss(queue_length=3, embedding_dim=6)
    views = crops(2, 5, 6)
    short(views, c)
    assert all(same_bits(short.queue[i], views[i][:3]) for i in range(2))
    ragged = SwAVLoss(queue_length=7, embedding_dim=6)
    for step in range(3):
        views = crops(2, 5, 6, seed=step)
        queue = [ragged.queue[i].clone() for i in range(2)] if step == 2 else None
        assert_relative(
            ragged(views, c), oracles.swav_loss([z.double() for z in views], c.double(),
                                                queue=queue), 1e-5
        )  # fmt: skip
    assert bool((ragged.queue != 0).any(2).all())


def test_eval_leaves_the_queue() -> None:
    loss = SwAVLoss(queue_length=10, embedding_dim=6).eval()
    loss(crops(2, 5, 6), unit(7, 6))
    assert not loss.queue.any()


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_checkpoint(steps) -> None:
    """The queue, and whether it is full, survive; the next losses are the same bits."""
    first = SwAVLoss(queue_length=10, embedding_dim=6)
    c = unit(7, 6, seed=50)
    for step in range(steps):
        first(crops(3, 5, 6, seed=step), c)
    second = SwAVLoss(queue_length=10, embedding_dim=6)
    second.load_state_dict(first.state_dict())
    for step in range(steps, 5):
        views = crops(3, 5, 6, seed=step)
        assert same_bits(first(views, c), second(views, c))
    assert same_bits(first.queue, second.queue)


def test_queue_keeps_the_rows_not_the_storage() -> None:
    """What the caller writes into an embedding later does not reach the queue."""
    loss = SwAVLoss(queue_length=5, embedding_dim=6)
    views = crops(2, 5, 6)
    loss(views, unit(7, 6))
    kept = loss.queue.clone()
    views[0].fill_(9.0)
    assert same_bits(loss.queue, kept)


@pytest.mark.parametrize("order", ["fixed", "sorted"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_prior(backend, order, dtype) -> None:
    """Fixed: entry k is prototype k's. Sorted: onto the masses of softmax(scores / epsilon)."""
    prior = power_law_prior(12, 1.0)[torch.randperm(12)]
    views, c = crops(2, 33, 8, dtype), unit(12, 8, dtype=dtype, seed=50)
    loss = SwAVLoss(prior=prior, prior_order=order)

    def by_hand(*z):
        total = 0.0
        for t, v in ((0, 1), (1, 0)):
            scores = (z[t] @ z[2].T).detach()
            share = oracles.sorted_prior(scores, prior, 0.05) if order == "sorted" else prior
            q = oracles.sinkhorn(scores, 0.05, 3, share)
            total = total + oracles.cross_entropy(z[v] @ z[2].T, q, 0.1) / 2
        return total

    assert_right(ours(loss), by_hand, [*views, c], 3)


def test_power_law_by_name(backend) -> None:
    views, c = crops(3, 33, 8), unit(12, 8, seed=50)
    named = SwAVLoss(prior="power_law", exponent=0.7)(views, c)
    assert same_bits(named, SwAVLoss(prior=power_law_prior(12, 0.7))(views, c))
    assert same_bits(SwAVLoss(prior="uniform")(views, c), SwAVLoss()(views, c))


@pytest.mark.parametrize("order", ["fixed", "sorted"])
@pytest.mark.parametrize("factored", [False, True])
def test_marginals_converge_to_the_prior(backend, order, factored) -> None:
    """Prior-matched Sinkhorn: column means of q within 1e-6 of the prior as iterations grow."""
    z, c = normal(400, 5, dtype=torch.float64), normal(11, 5, dtype=torch.float64, seed=1)
    prior = power_law_prior(11, 0.8).double()[torch.randperm(11)]
    prior /= prior.sum()
    scores = (z, c) if factored else z @ c.T
    if order == "sorted":
        prior = sorted_prior(scores, prior, 0.5, "")
        masses = (z @ c.T / 0.5).softmax(1).sum(0)
        assert torch.equal(masses.argsort(), prior.argsort())
    gaps = []
    for iterations in (1, 5, 25, 125, 625):
        q = Assignment.sinkhorn(scores, epsilon=0.5, iterations=iterations, prior=prior).dense()
        gaps.append(error(q.mean(0), prior))
        assert error(q.sum(1), torch.ones(400)) < 1e-12
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 1e-3 and gaps[-1] < 1e-6, gaps


def test_sorted_prior_keeps_the_order_of_ties() -> None:
    """Equal masses: the first prototype gets the larger share; the shares are the prior's."""
    prior = torch.tensor([0.1, 0.4, 0.2, 0.3])
    sorted_ = sorted_prior(torch.zeros(6, 4), prior, 0.05, "")
    assert sorted_.tolist() == sorted(prior.tolist(), reverse=True)
    scores = torch.tensor([[0.0, 1.0, 0.5, 0.5]]).repeat(3, 1)
    assert sorted_prior(scores, prior, 0.05, "").tolist() == pytest.approx([0.1, 0.4, 0.3, 0.2])


def test_normalize_prototypes() -> None:
    """In place, rows of unit norm, a zero row stays; the optimiser's parameter is the same."""
    weight = torch.nn.Parameter(normal(5, 3))
    weight.data[2] = 0
    expected = torch.nn.functional.normalize(weight.detach().clone(), dim=1)
    assert SwAVLoss.normalize_prototypes(weight) is None
    assert same_bits(weight.detach(), expected) and weight.is_leaf and weight.requires_grad
    assert not weight[2].any()


@pytest.mark.parametrize("case", ["scores of 1e4", "one image", "collapsed", "zero rows", "unused"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_finite(backend, case, dtype) -> None:
    views, c = crops(3, 9, 6), unit(7, 6, seed=50)
    if case == "scores of 1e4":
        c = c * 1e4
    elif case == "one image":
        views = [z[:1] for z in views]
    elif case == "collapsed":
        views = [views[0][:1].repeat(9, 1)] * 3
    elif case == "zero rows":
        views = [z * 0 for z in views]
    else:
        c = torch.cat([c, -unit(1, 6) * 50])
    inputs = [x.to(dtype) for x in (*views, c)]
    found = value_and_grads(ours(SwAVLoss(prior="power_law", prior_order="sorted")), inputs, 4)
    assert all(bool(x.isfinite().all()) for x in found)


@pytest.mark.parametrize("queue_length", [0, 2048])
def test_no_dense_matrix(backend, queue_length) -> None:
    """Neither scores, targets nor logits: tiles of at most a quarter of N x K.

    Kept for backward, queue or not: the bytes of inputs and gradients, and 64 a row or prototype.
    """
    n, d, k = 1024, 32, 4096
    views = [z.requires_grad_() for z in crops(3, n, d)]
    c = unit(k, d, seed=50).requires_grad_()
    options = {"prior": "power_law", "prior_order": "sorted"}
    loss = SwAVLoss(queue_length=queue_length, embedding_dim=d, **options)
    if queue_length:
        loss.load_state_dict({"queue": unit(2, queue_length, d, seed=9)})
    with Allocations() as watch, Saved(*views, c) as saved:
        value = loss(views, c)
        value.backward()
    assert watch.largest() <= n * k // 4
    inputs = sum(4 * x.numel() for x in (*views, c))
    assert saved.nbytes() <= 2 * inputs + 64 * (3 * n + k)


def test_same_bits_every_run(backend) -> None:
    views, c = crops(3, 67, 16), unit(31, 16, seed=50)
    runs = [value_and_grads(ours(SwAVLoss(prior="power_law")), [*views, c], 4) for _ in range(2)]
    assert all(same_bits(a, b) for a, b in zip(*runs, strict=True))


Z = [torch.zeros(4, 3), torch.zeros(4, 3)]
C = torch.zeros(5, 3)
REFUSED = {
    "a tensor for crops": (lambda: SwAVLoss()(Z[0], C), TypeError, ["embeddings", "list"]),
    "no crops": (lambda: SwAVLoss()([], C), ValueError, ["embeddings", "empty"]),
    "one crop": (lambda: SwAVLoss()(Z[:1], C), ValueError, [r"assign_crops=\(0, 1\)", "has 1"]),
    "the assigned crop alone": (
        lambda: SwAVLoss(assign_crops=(0,))(Z[:1], C), ValueError, ["pair"]
    ),
    "crops that do not match": (
        lambda: SwAVLoss()([Z[0], Z[1][:3]], C), ValueError, [r"\(3, 3\)", r"\(4, 3\)"]
    ),
    "widths differ": (lambda: SwAVLoss()(Z, C[:, :2]), ValueError, [r"\(4, 3\)", r"\(5, 2\)"]),
    "queue without width": (lambda: SwAVLoss(queue_length=8), ValueError, ["embedding_dim"]),
    "queue of another width": (
        lambda: SwAVLoss(queue_length=8, embedding_dim=2)(Z, C),
        ValueError,
        ["embedding_dim=2", r"\(4, 3\)"],
    ),
    "queue_length -1": (lambda: SwAVLoss(queue_length=-1), ValueError, ["queue_length", "-1"]),
    "assign_crops twice": (lambda: SwAVLoss(assign_crops=(0, 0)), ValueError, ["assign_crops"]),
    "a prior that is no name": (lambda: SwAVLoss(prior="zipf"), ValueError, ["prior", "zipf"]),
    "a prior of another length": (
        lambda: SwAVLoss(prior=torch.full((4,), 0.25))(Z, C), ValueError, ["prior", r"\(5,\)"]
    ),
    "a prior that is negative": (
        lambda: SwAVLoss(prior=torch.tensor([1.5, -0.5])), ValueError, ["prior", "-0.5"]
    ),
    "a prior of sum 2": (
        lambda: SwAVLoss(prior=torch.ones(2)), ValueError, ["prior", "sum to 1", "2"]
    ),
    "prior_order": (lambda: SwAVLoss(prior_order="up"), ValueError, ["prior_order", "sorted"]),
    "temperature 0": (lambda: SwAVLoss(temperature=0), ValueError, ["temperature", "0"]),
    "epsilon -1": (lambda: SwAVLoss(epsilon=-1), ValueError, ["epsilon", "-1"]),
    "iterations 0": (lambda: SwAVLoss(iterations=0), ValueError, ["iterations", "0"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case) -> None:
    call, kind, words = REFUSED[case]
    with pytest.raises(kind) as caught:
        call()
    for word in words:
        caught.match(word)
