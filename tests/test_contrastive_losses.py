"""The losses of instance and prototype discrimination, and their queue, against the formulas."""

import copy
import io

import oracles
import pytest
import torch
from checks import (
    assert_relative,
    assert_right,
    gradcheck,
    normal,
    same_bits,
    unit,
    value_and_grads,
)

from ssl_fast import backend as dispatch
from ssl_fast.functional import info_nce
from ssl_fast.functional._prototypes import Terms, prototype_terms
from ssl_fast.functional._rows import nearest_index
from ssl_fast.losses import (
    BYOLLoss,
    DCLLoss,
    DCLWLoss,
    MemoryQueue,
    MoCoLoss,
    NNCLRLoss,
    NTXentLoss,
    PAUCLoss,
    ProtoNCELoss,
    SimSiamLoss,
)

pytestmark = pytest.mark.cpu_kernels
F = torch.nn.functional


def views(count: int, n: int = 17, d: int = 5) -> list[torch.Tensor]:
    return [normal(n, d, seed=seed) for seed in range(count)]


def clustering(n: int, k: int, d: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    phi = torch.rand(k, generator=generator) * 0.2 + 0.1
    return unit(k, d, seed=seed + 50), phi, torch.randint(k // 2, (n,), generator=generator)


@pytest.mark.parametrize("count", [2, 4])
def test_nt_xent(backend, count) -> None:
    assert_right(
        lambda *z: NTXentLoss(0.3)(*z), lambda *z: oracles.nt_xent(list(z), 0.3), views(count),
        wrt=count,
    )  # fmt: skip


def test_dcl(backend) -> None:
    for loss, weights in ((DCLLoss(), None), (DCLLoss(0.1, lambda a, b: a.sum(1)), "sum")):
        z = views(2)
        w = None if weights is None else z[0].sum(1)[:, None].expand(-1, 2)
        assert_right(loss, lambda *z: oracles.decoupled(*z, 0.1, w), z, wrt=2)  # noqa: B023


def test_dclw(backend) -> None:
    z = views(2)
    cosine = F.cosine_similarity(*z)
    weights = (2 - 17 * (cosine / 0.4).softmax(0))[:, None].expand(-1, 2)
    assert_right(DCLWLoss(0.2, sigma=0.4), lambda *z: oracles.decoupled(*z, 0.2, weights), z, wrt=2)


def test_weights_of_dclw_are_float64_where_views_are() -> None:
    z = [x.double() for x in views(2)]
    cosine = F.cosine_similarity(*z)
    weights = (2 - 17 * (cosine / 0.5).softmax(0))[:, None].expand(-1, 2)
    assert_relative(DCLWLoss()(*z), oracles.decoupled(*z, 0.1, weights), 1e-14)


def test_moco_is_its_listing(backend) -> None:
    """Logits against the queue, then enqueue: three steps, through a wrap of the queue."""
    loss = MoCoLoss(queue_size=40, dim=5, temperature=0.2)
    queue, pointer = loss.queue.rows.clone(), 0
    for step in range(3):
        q, k = normal(17, 5, seed=step), normal(17, 5, seed=10 + step)
        expected = value_and_grads(lambda q: oracles.one_of_many(q, k, queue, 0.2), [q], 1)  # noqa: B023
        found = value_and_grads(lambda q: loss(q, k), [q], 1)  # noqa: B023
        for actual, exact in zip(found, expected, strict=True):
            assert_relative(actual, exact.double(), 1e-5, tiny=1e-7)
        for key in F.normalize(k, dim=1):
            queue[pointer % 40] = key
            pointer += 1
        assert_relative(loss.queue.rows, queue.double(), 1e-6, tiny=1e-7)
        assert int(loss.queue.pointer) == pointer % 40


def test_moco_v3(backend) -> None:
    q, k = views(2)
    assert_right(
        MoCoLoss(queue_size=0, temperature=0.7),
        lambda q, k: 1.4 * oracles.one_of_many(q, k.detach(), None, 0.7), [q, k], wrt=1,
    )  # fmt: skip


def test_moco_keeps_keys_constant_and_the_queue_in_evaluation(backend) -> None:
    loss = MoCoLoss(queue_size=40, dim=5).eval()
    before = loss.queue.rows.clone()
    q, k = (x.requires_grad_() for x in views(2))
    loss(q, k).backward()
    assert k.grad is None and q.grad is not None
    assert same_bits(loss.queue.rows, before)


def test_nnclr(backend) -> None:
    """Neighbours by argmax over the queue; CE(nn p.T / T, diagonal), both directions' mean."""
    loss = NNCLRLoss(queue_size=50, dim=5, temperature=0.2)
    queue = loss.queue.rows.double().clone()
    p0, p1, z0, z1 = views(4)

    def formula(p0, p1):
        neighbours = [queue[(F.normalize(z.double(), dim=1) @ queue.T).argmax(1)] for z in (z0, z1)]
        terms = [
            oracles.one_of_many(n.to(p), p, None, 0.2)
            for n, p in zip(neighbours, (p1, p0), strict=True)
        ]
        return sum(terms) / 2

    loss.eval()
    assert_right(lambda a, b: loss(a, b, z0, z1), formula, [p0, p1], wrt=2)
    loss.train()
    loss(p0, p1, z0, z1)
    assert_relative(loss.queue.rows[:17], F.normalize(z0.double(), dim=1), 1e-6, tiny=1e-7)


def test_nearest_beyond_a_tile(backend) -> None:
    queue = MemoryQueue(9001, 4)
    z = normal(1300, 4)
    assert same_bits(queue.nearest(z), queue.rows[(F.normalize(z, dim=1) @ queue.rows.T).argmax(1)])


@pytest.mark.parametrize("length", [1, 130, 3000])
def test_nearest_is_argmax_of_ties_and_nan(backend, length) -> None:
    """Products of small integers are exact: equals abound, the first is taken; NaN before all."""
    torch.manual_seed(length)
    z, queue = (torch.randint(-2, 3, (n, 3)).float() for n in (37, length))
    name = dispatch.select("cosine", z.device, z.dtype)
    for k in (None, length - 1, length // 2):
        if k is not None:
            queue[k, 1] = torch.nan
        assert torch.equal(nearest_index(z, queue, name), (z @ queue.T).argmax(1))


def test_nnclr_refuses_by_name() -> None:
    loss, x = NNCLRLoss(6, 3), normal(5, 3)
    with pytest.raises(TypeError, match=r"z1 must be a torch\.Tensor, got None"):
        loss(x, x, x, None)
    with pytest.raises(ValueError, match=r"one width D, got z \(5, 2\) and queue \(6, 3\)"):
        loss(x, x, x, x[:, 1:])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_byol_and_simsiam(dtype) -> None:
    z = [x.to(dtype) for x in views(4)]

    def cosines(p0, p1, z0, z1):
        terms = zip((p0, p1), (z1.detach(), z0.detach()), strict=True)
        return sum((F.normalize(p, dim=1) * F.normalize(z, dim=1)).sum(1).mean() for p, z in terms)

    assert_right(BYOLLoss(), lambda *x: 4 - 2 * cosines(*x), z, wrt=2)
    assert_right(SimSiamLoss(), lambda *x: -0.5 * cosines(*x), z, wrt=2)


def test_positives_alone_of_zero_rows() -> None:
    p0, p1, z0, z1 = views(4)
    p0[3] = z0[4] = 0
    p0[5] = 1e-18  # whose square float32 barely holds, its cube not
    for loss in (BYOLLoss(), SimSiamLoss()):
        _, d_p0, d_p1 = value_and_grads(lambda a, b: loss(a, b, z0, z1), [p0, p1], 2)  # noqa: B023
        assert not bool(d_p0[3].any()) and not bool(d_p1[4].any())
        assert bool(d_p0.isfinite().all()) and bool(d_p1.isfinite().all())


@pytest.mark.parametrize("clusters", [3, 40, 200])
def test_proto_nce_in_the_batch(backend, clusters) -> None:
    """Without a queue all terms are one operator; fewer clusters than rows leave none to draw."""
    loss = ProtoNCELoss(0, temperature=0.3, negatives=999)
    q, k = views(2, 64)
    clusterings = [clustering(64, clusters, 5, seed) for seed in (0, 1)]

    def ours(q):
        torch.manual_seed(3)
        return loss(q, k, clusterings)

    def formula(q):
        torch.manual_seed(3)
        rows, total = torch.arange(64), 0.6 * oracles.one_of_many(q, k.to(q), None, 0.3)
        for c, phi, index in clusterings:
            chosen = torch.cat([index, loss._draw(clusters, index)])
            unit = F.normalize(q, dim=1)
            total = total + oracles.proto_nce(unit, c[chosen].to(q), phi[chosen], rows) / 2
        return total

    assert_right(ours, formula, [q], wrt=1)


@pytest.mark.parametrize("duplicates", ["count", "ignore"])
def test_proto_nce(backend, duplicates) -> None:
    """All remaining prototypes drawn: no chance left. M clusterings enter as their mean."""
    loss = ProtoNCELoss(64, 5, 0.2, negatives=999, duplicates=duplicates).eval()
    q, k = views(2, 9)
    clusterings = [clustering(9, 40, 5, seed) for seed in (0, 1)]

    def formula(q):
        total = oracles.one_of_many(q, k, loss.instances.queue.rows.to(q), 0.2)
        unit = F.normalize(q, dim=1)
        for c, phi, index in clusterings:
            torch.manual_seed(3)
            chosen = torch.cat([index, loss._draw(40, index)])
            if duplicates == "ignore":
                term = oracles.proto_nce(unit, c.to(q), phi, index, chosen, ignore=True)
            else:
                term = oracles.proto_nce(unit, c[chosen].to(q), phi[chosen], torch.arange(9))
            total = total + term / 2
        return total

    assert len(loss._draw(40, clusterings[0][2])) == 31
    assert_right(
        lambda q: (torch.manual_seed(3), _same_draws(loss, q, k, clusterings))[1],
        formula,
        [q],
        wrt=1,
    )


def _same_draws(loss, q, k, clusterings):
    parts = [loss(q, k)]
    for c in clusterings:
        torch.manual_seed(3)
        parts.append((loss(q, k, [c]) - parts[0]) / len(clusterings))
    return sum(parts)


def test_drawn_prototypes_are_others_without_repetition() -> None:
    loss, index = ProtoNCELoss(8, 2, negatives=10), torch.tensor([3, 3, 7, 19])
    for _ in range(20):
        drawn = loss._draw(20, index)
        assert len(drawn) == 10 == len(drawn.unique())
        assert not bool(torch.isin(drawn, index).any())
    assert len(loss._draw(3, torch.tensor([0, 1, 2]))) == 0


def pauc_terms(q, k, clusterings, s=2.0, t=2.0, temperature=1.0) -> list[torch.Tensor]:
    """Eqs. 4, 5, 6 written out: alignment over both views and all pairs of clusterings."""
    q, k = F.normalize(q, dim=1), F.normalize(k, dim=1)

    def means(x, index):
        return torch.stack([F.normalize(x[index == i].mean(0), dim=0) for i in index.unique()])

    def of_rows(c, index):
        return c[(index[:, None] == index.unique()).int().argmax(1)]

    own = [(means(q, i), i) for *_, i in clusterings]
    pairs = [(of_rows(p, i), of_rows(means(k, i), i)) for p, i in own]
    pairs += [(of_rows(*own[a]), of_rows(*own[b])) for a in range(len(own)) for b in range(a)]
    align = torch.stack([(p - r).norm(dim=1).pow(s).mean() for p, r in pairs]).mean()
    uniform = corr = 0
    for c, _ in own:
        off = ~torch.eye(len(c), dtype=torch.bool)
        uniform = uniform + (-t * torch.cdist(c, c).square()).exp()[off].mean() / len(own)
        p = (c / temperature).softmax(1)
        ratio = (p[None].log() - p[:, None].log()) * p[:, None]
        corr = corr + ratio.sum(2)[off].mean() / len(own)
    return [align, uniform, corr]


@pytest.mark.parametrize("weights", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.5, 2.0, 0.3)], ids=str)
@pytest.mark.parametrize("queued", [0, 32])
def test_pauc(backend, queued, weights) -> None:
    """ProtoNCE plus the three terms; each alone, and weighted."""
    q, k = views(2, 24, 6)
    clusterings = [clustering(24, c, 6, seed) for c, seed in ((8, 0), (12, 1))]
    options = {"alpha": weights[0], "beta": weights[1], "gamma": weights[2]}
    options |= {"negatives": 4, "s": 3.0, "t": 1.5, "softmax_temperature": 0.5}
    pauc = PAUCLoss(queued, 6, **options).eval()

    def ours(q):
        torch.manual_seed(1)
        base = pauc.base(q, k, clusterings)
        torch.manual_seed(1)
        return pauc(q, k, clusterings) - base

    def formula(q):
        terms = pauc_terms(q, k.to(q), clusterings, 3.0, 1.5, 0.5)
        return sum(w * term for w, term in zip(weights, terms, strict=True))

    exact = value_and_grads(formula, [q.double()], 1)
    for actual, expected in zip(value_and_grads(ours, [q], 1), exact, strict=True):
        assert_relative(actual, expected, 1e-4, tiny=2e-6)


def test_pauc_warms_up_with_info_nce(backend) -> None:
    pauc = PAUCLoss(32, 6).eval()
    q, k = views(2, 24, 6)
    queue = pauc.base.instances.queue.rows
    assert_relative(pauc(q, k), info_nce(q, k, queue).double(), 1e-6)


def test_pauc_of_one_cluster_is_finite(backend) -> None:
    pauc = PAUCLoss(32, 6, negatives=2)
    c, phi, index = clustering(24, 8, 6)
    q, k = views(2, 24, 6)
    value, grad = value_and_grads(lambda q: pauc(q, k, [(c, phi, index * 0)]), [q], 1)
    assert bool(value.isfinite()) and bool(grad.isfinite().all())


@pytest.mark.parametrize("weights", [(1, 0, 0), (0, 1, 0), (0, 0, 1)], ids=str)
def test_prototypes_carry_gradient(backend, weights) -> None:
    """Every row of a cluster is moved by its prototype's gradient."""
    q, k = (x.double() for x in views(2, 24, 6))
    index = [clustering(24, c, 6, c)[2] for c in (8, 12)]
    terms = Terms(*weights, s=3.0, t=1.5)
    gradcheck(lambda q: prototype_terms(q, k, index, terms), q)


@pytest.mark.parametrize(
    ("size", "batches"), [(10, [3] * 9), (7, [7, 7]), (5, [1, 12, 2]), (1, [1, 4])]
)
def test_queue_is_first_in_first_out(size, batches) -> None:
    """Through every wrap, and of a batch beyond the size the last rows: nothing is dropped."""
    queue = MemoryQueue(size, 3)
    history = list(queue.rows.clone())
    for step, n in enumerate(batches):
        keys = normal(n, 3, seed=step)
        queue.enqueue(keys)
        history += list(F.normalize(keys, dim=1))
        oldest = int(queue.pointer)
        actual = torch.cat([queue.rows[oldest:], queue.rows[:oldest]])
        assert_relative(actual, torch.stack(history[-size:]).double(), 1e-6, tiny=1e-7)


def test_queue_in_a_checkpoint() -> None:
    loss, file = MoCoLoss(queue_size=20, dim=4), io.BytesIO()
    loss(normal(9, 4), normal(9, 4, seed=1))
    torch.save(loss.state_dict(), file)
    file.seek(0)
    other = MoCoLoss(queue_size=20, dim=4)
    other.load_state_dict(torch.load(file))
    assert same_bits(other.queue.rows, loss.queue.rows) and int(other.queue.pointer) == 9
    twin = copy.deepcopy(loss)
    twin.queue.enqueue(normal(3, 4))
    assert int(loss.queue.pointer) == 9


def test_enqueue_never_corrupts_a_graph(backend) -> None:
    """Our losses use the rows of their time; a graph of one's own is refused, never wrong."""
    queue = MemoryQueue(30, 4)
    q, k = normal(9, 4).requires_grad_(), normal(9, 4, seed=1)
    (expected,) = torch.autograd.grad(info_nce(q, k, queue.rows), q)
    loss = info_nce(q, k, queue.rows)
    product = (q @ queue.rows.T).square().sum()
    queue.enqueue(k)
    assert same_bits(torch.autograd.grad(loss, q)[0], expected)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_enqueue_makes_no_copy_of_the_queue() -> None:
    from checks import Allocations

    queue = MemoryQueue(5000, 4)
    with Allocations() as watch:
        queue.enqueue(normal(9, 4))
    assert watch.largest() <= 9 * 4


def test_queue_under_compile() -> None:
    """Two steps in one graph; the buffers change as in eager mode."""
    torch.compiler.reset()
    loss = MoCoLoss(queue_size=20, dim=4)
    twin = copy.deepcopy(loss)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for step in range(2):
        q, k = normal(13, 4, seed=step), normal(13, 4, seed=9 + step)
        eager = value_and_grads(lambda q: loss(q, k), [q], 1)  # noqa: B023
        traced = value_and_grads(lambda q: compiled(q, k), [q], 1)  # noqa: B023
        assert all(same_bits(a, b) for a, b in zip(traced, eager, strict=True))
    assert same_bits(twin.queue.rows, loss.queue.rows) and int(twin.queue.pointer) == 6


def test_refusals() -> None:
    q = torch.randn(4, 3)
    for call, message in (
        (lambda: NTXentLoss(0.0), "temperature"),
        (lambda: MemoryQueue(0, 3), "size must be an integer >= 1"),
        (lambda: MoCoLoss(-1, 3), "queue_size must be an integer >= 0, got -1"),
        (lambda: MoCoLoss(20, 5)(q, q), r"queue must have query's width 3, got \(20, 5\)"),
        (lambda: DCLWLoss(sigma=0), "sigma"),
        (lambda: PAUCLoss(alpha=-1), "alpha must be finite and >= 0, got -1"),
        (lambda: ProtoNCELoss(duplicates="x"), "duplicates must be one of"),
        (lambda: BYOLLoss()(q, q, q, q[:3]), r"must have one shape, .* got \(4, 3\) and \(3, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
