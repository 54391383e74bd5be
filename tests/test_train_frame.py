"""Parts of the driver: masks, transformers, priors, optimisers, schedules, the auxiliary term."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

for package in ("lightning", "torchvision", "sklearn", "timm"):
    pytest.importorskip(package, reason="the driver needs pip install ssl_fast[train]")

from ssl_fast.train import masks, schedules  # noqa: E402
from ssl_fast.train.config import TrainOptions  # noqa: E402
from ssl_fast.train.errors import UsageError  # noqa: E402
from ssl_fast.train.heads import Prototypes  # noqa: E402
from ssl_fast.train.methods import METHODS, Batch, Method, Output  # noqa: E402
from ssl_fast.train.methods.base import MomentumNetwork, by_size  # noqa: E402
from ssl_fast.train.models import build_encoder  # noqa: E402
from ssl_fast.train.module import Pretraining  # noqa: E402
from ssl_fast.train.optimizers import build_optimizer, build_schedule  # noqa: E402
from ssl_fast.train.prior import Prior  # noqa: E402


@pytest.mark.parametrize(("drop", "kept"), [(0.0, 48), (0.15, 40), (0.99, 1)])
def test_random_masks_keep_their_share(drop, kept):
    keep = masks.random_keep(torch.rand(20, 48), drop)
    assert keep.shape == (20, kept)
    assert all(len(set(row.tolist())) == kept for row in keep)
    assert 0 <= keep.min() and keep.max() < 48


def test_focal_masks_keep_one_block():
    keep = masks.focal_keep(torch.rand(50, 2), (6, 8), 3)
    rows, columns = keep // 8, keep % 8
    assert keep.shape == (50, 9)
    assert ((rows.max(1).values - rows.min(1).values) == 2).all()
    assert ((columns.max(1).values - columns.min(1).values) == 2).all()
    assert len(keep[:, 0].unique()) > 10, "blocks stand at different places"
    assert masks.focal_keep(torch.rand(2, 2), (2, 2), 5).tolist() == [[0, 1, 2, 3]] * 2


def test_processes_draw_the_numbers_of_one():
    def drawn(count, **place):
        torch.manual_seed(3)
        return Batch([], torch.arange(count), **place).uniform(5)

    whole = drawn(8)
    assert whole.unique().numel() == 40
    for rank in range(4):
        assert torch.equal(drawn(2, world=4, rank=rank), whole[rank::4])


def test_block_masks_hide_the_exact_number():
    hidden = masks.block_masks(torch.rand(400, 106), (8, 8), 0.25, 0.25, share=0.5).sum(1)
    assert set(hidden.tolist()) == {0, 16}
    assert 0.4 < (hidden > 0).float().mean() < 0.6
    whole = masks.block_masks(torch.rand(3, 58), (4, 4), 1.0, 1.0, share=1.0)
    assert whole.all()


def test_block_masks_are_blocks():
    mask = masks.block_masks(torch.rand(200, 106), (8, 8), 0.25, 0.25, share=1.0).view(-1, 8, 8)
    neighbours = (mask[:, 1:] & mask[:, :-1]).sum((1, 2)) + (mask[..., 1:] & mask[..., :-1]).sum(
        (1, 2)
    )
    assert neighbours.float().mean() > 14, "scattered patches would have 7"


@pytest.mark.parametrize("size", [32, 16])
def test_a_transformer_sees_the_kept_patches_alone(size):
    vit = build_encoder("vit-32/4", channels=1, image_size=32).eval()
    images = torch.randn(3, 1, size, size)
    grid = vit.grid(images)
    keep = masks.random_keep(torch.rand(3, grid[0] * grid[1]), 0.5)
    out = vit(images, keep=keep)
    noise = torch.ones(3, grid[0] * grid[1]).scatter_(1, keep, 0.0).view(3, 1, *grid)
    changed = images + F.interpolate(noise, images.shape[-2:])
    assert torch.equal(vit(changed, keep=keep), out)
    assert not torch.allclose(vit(changed), vit(images))
    everything = torch.arange(grid[0] * grid[1]).expand(3, -1)
    torch.testing.assert_close(vit(images, keep=everything), vit(images))


@pytest.mark.parametrize("size", [32, 40])
@pytest.mark.parametrize("name", ["small-4", "resnet18", "resnet18-pad2"])
def test_a_grid_counts_the_cells_of_the_last_map(name, size):
    network = build_encoder(name, channels=1, image_size=32).eval()
    images = torch.randn(1, 1, size, size)
    with torch.no_grad():
        cells = torch.nn.Sequential(*list(network)[:-2])(images)
    assert network.grid(images) == tuple(cells.shape[-2:])


@pytest.mark.parametrize("name", ["vit-32/4", "small-4", "resnet18-pad2"])
def test_hidden_patches_do_not_matter(name):
    network = build_encoder(name, channels=1, image_size=32).eval()
    images, token = torch.randn(2, 1, 32, 32), torch.randn(network.dim)
    grid = network.grid(images)
    mask = masks.block_masks(torch.rand(2, masks.block_numbers(grid)), grid, 0.5, 0.5, share=1.0)
    tokens = network.tokens(images, mask, token)
    assert tokens.shape == (2, 1 + grid[0] * grid[1], network.dim)
    hidden = F.interpolate(mask.view(2, 1, *grid).float(), (32, 32))
    torch.testing.assert_close(network.tokens(images + 5 * hidden, mask, token), tokens)
    torch.testing.assert_close(network.tokens(images)[:, 0], network(images))


def test_a_convolutional_net_sees_black_instead():
    network = build_encoder("small-4", channels=1, image_size=32).eval()
    images = torch.randn(2, 1, 32, 32)
    keep = masks.focal_keep(torch.rand(2, 2), network.squares(images), 4)
    shown = torch.zeros(2, 64).scatter_(1, keep, 1.0).view(2, 1, 8, 8)
    black = images * F.interpolate(shown, (32, 32))
    torch.testing.assert_close(network(images, keep=keep), network(black))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet18-pad3", "the same with -pad2"),
        ("vit-64/5", "try /4"),
        ("vit-100/4", "multiple of 32"),
        ("vit/4", "vit-W/P"),
    ],
)
def test_encoders_that_cannot_be_built(name, message):
    with pytest.raises(UsageError, match=message):
        build_encoder(name, channels=3, image_size=32)


def test_views_of_one_size_share_a_pass():
    seen = []

    def network(x):
        seen.append(x.shape)
        return x.mean((1, 2, 3))

    views = [torch.full((2, 1, size, size), float(i)) for i, size in enumerate((8, 8, 4, 4, 4))]
    out = by_size(network, views)
    assert seen == [(4, 1, 8, 8), (6, 1, 4, 4)]
    assert [z.tolist() for z in out] == [[i, i] for i in range(5)]


def test_priors():
    assert Prior().shares(5) is None
    power = Prior("power_law", 0.5).shares(4)
    torch.testing.assert_close(power, F.normalize(torch.tensor([1, 2, 3, 4]) ** -0.5, p=1, dim=0))
    classes = Prior("class", labels=[0, 1, 1, 1]).shares(4)
    assert classes.tolist() == [0.375, 0.375, 0.125, 0.125]


@pytest.mark.parametrize(
    ("text", "message"),
    [("1 2 x", "one number for each"), ("1 2", "each of the 3"), ("1 -1 1", "at least 0")],
)
def test_a_prior_from_a_file(text, message, tmp_path):
    path = tmp_path / "prior.txt"
    path.write_text("1\n2\n5\n")
    assert Prior(str(path)).shares(3).tolist() == [0.125, 0.25, 0.625]
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        Prior(str(path)).shares(3)
    with pytest.raises(UsageError, match="try 4"):
        Prior("class", labels=[0, 1]).shares(5)
    with pytest.raises(UsageError, match="is no file"):
        Prior("powerlaw").shares(3)


class Constant(Method):
    """A method whose loss is nothing."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)
        self.prototypes = Prototypes(4, 3, unit=True)

    def undecayed(self):
        return [self.prototypes.weight]

    def loss(self, batch: Batch) -> Output:
        z = self.layer(batch.views[0])
        return Output(0 * z.sum(), [z, self.layer(batch.views[1])])


@pytest.mark.parametrize("name", ["sgd", "lars", "adam", "adamw"])
def test_what_decays(name):
    method = Constant()
    optimizer = build_optimizer(method, TrainOptions(optimizer=name, decay_norms=False))
    decayed, free = optimizer.param_groups
    assert decayed["weight_decay"] > 0 == free["weight_decay"]
    assert [p is method.layer.weight for p in decayed["params"]] == [True]
    assert any(p is method.prototypes.weight for p in free["params"])
    everything = build_optimizer(method, TrainOptions(optimizer=name)).param_groups[0]["params"]
    assert len(everything) == 4


def test_rates_warm_up_and_fall_together():
    """From a hundredth up to the peak along a line, down to the floor along a cosine."""
    rates = {"lr": 0.4, "lr_undecayed": 0.02, "decay_norms": False}
    o = TrainOptions(**rates, epochs=10, warmup_epochs=2, lr_floor=0.1)
    optimizer = build_optimizer(Constant(), o)
    schedule = build_schedule(optimizer, o, total=50)
    found = []
    for _ in range(51):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    shares = torch.tensor(found) / torch.tensor([0.4, 0.02])
    assert torch.allclose(shares[:, 0], shares[:, 1])
    expected = {0: 0.01, 5: 0.505, 10: 1.0, 30: 0.55, 50: 0.1}
    assert {step: round(float(shares[step, 0]), 4) for step in expected} == expected


@pytest.mark.parametrize("clip", [False, True])
def test_lars_scales_by_the_trust_ratio(clip):
    """Step lr * trust * |w| / (|g| + wd |w|) * (g + wd w) on matrices, lr * g on vectors.

    Clipped, lr * min(1, that ratio / lr).
    """
    method = Constant()
    w, b = method.layer.weight, method.layer.bias
    numbers = {"lr": 0.5, "lars_trust": 0.4, "weight_decay": 0.1, "sgd_momentum": 0}
    o = TrainOptions(optimizer="lars", lars_clip=clip, decay_norms=False, **numbers)
    optimizer = build_optimizer(method, o)
    w.grad, b.grad = torch.randn_like(w), torch.randn_like(b)
    trust = o.lars_trust * w.norm() / (w.grad.norm() + 0.1 * w.norm())
    if clip:
        trust = (trust / 0.5).clamp(max=1)
    expected = w - 0.5 * trust * (w.grad + 0.1 * w), b - 0.5 * b.grad
    optimizer.step()
    torch.testing.assert_close((w.data, b.data), tuple(e.detach() for e in expected))


def placed(module: Pretraining, step: int, steps: int, epoch: int) -> Pretraining:
    module._trainer = SimpleNamespace(
        global_step=step, estimated_stepping_batches=steps, current_epoch=epoch, world_size=1
    )
    return module


def test_weight_decay_follows_a_cosine():
    options = TrainOptions(weight_decay=0.04, weight_decay_end=0.4, decay_norms=False)
    module = Pretraining(Constant(), options)
    optimizer = build_optimizer(module.method, options)
    for step, expected in ((0, 0.04), (50, 0.22), (100, 0.4)):
        placed(module, step, 100, 0).on_before_optimizer_step(optimizer)
        found = [group["weight_decay"] for group in optimizer.param_groups]
        assert found == pytest.approx([expected, 0.0])


def test_the_auxiliary_terms_weight():
    """Published schedule: one step down in the first epoch, nothing in the last."""
    weights = [schedules.uniformity_weight(0.2, e, 4, "linear") for e in (1, 2, 3, 4)]
    assert weights == pytest.approx([0.15, 0.1, 0.05, 0.0])
    assert schedules.uniformity_weight(0.2, 4, 4, "constant") == 0.2


def test_momentum_schedules():
    for shape, middle in (("linear", 0.8), ("cosine", 0.8), ("constant", 0.6)):
        assert schedules.anneal(0.6, 1.0, 0.5, shape) == pytest.approx(middle)
    assert schedules.anneal(0.6, 1.0, 0.25, "cosine") == pytest.approx(
        0.6 + 0.4 * (1 - math.sqrt(0.5)) / 2
    )
    with pytest.raises(UsageError, match="between 0 and 1"):
        MomentumNetwork(torch.nn.Linear(1, 1), 1.5)


def test_every_method_says_where_it_comes_from():
    for name, method in METHODS.items():
        assert name == name.lower()
        assert method.paper and method.equation and method.loss_class
        assert set(method.recipe) <= set(TrainOptions.__dataclass_fields__), name
