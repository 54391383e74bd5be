"""Recipes of photographs: torchvision's image by image, and the same a batch at a time."""

import math
import sys
from types import SimpleNamespace

import pytest
import torch

for package in ("lightning", "torchvision", "sklearn", "jsonargparse", "kornia"):
    pytest.importorskip(package, reason="the driver needs pip install ssl_fast[train]")

from PIL import Image  # noqa: E402
from torchvision.transforms.v2 import functional as F  # noqa: E402

from ssl_fast.cli import main  # noqa: E402
from ssl_fast.train import config, data, run  # noqa: E402
from ssl_fast.train.errors import UsageError  # noqa: E402
from ssl_fast.train.photos import IMAGENET, RECIPES, Colours, Recipe, photo_views  # noqa: E402
from ssl_fast.train.samplers import build_order  # noqa: E402

CALM = Recipe(jitter=(0.0,) * 4, jittered=0, gray=0, blurred=(0, 0))


def bytes_of(count, size=32, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=random, dtype=torch.uint8)


def pixels(x):
    """Before normalisation."""
    mean, std = (torch.tensor(t).view(3, 1, 1) for t in IMAGENET)
    return x * std + mean


def with_shares(**shares):
    return Recipe(**{**vars(CALM), **shares})


@pytest.fixture
def folder(tmp_path):
    random = torch.Generator().manual_seed(0)
    for part, count in (("train", 16), ("val", 4)):
        for name in ("cat", "dog"):
            place = tmp_path / "photographs" / part / name
            place.mkdir(parents=True)
            for i in range(count):
                noise = torch.randint(0, 256, (50 + i, 40, 3), generator=random, dtype=torch.uint8)
                Image.fromarray(noise.numpy()).save(place / f"{i:03}.png")
    return tmp_path / "photographs"


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 2, 0], [2, 0, 3, 1]])
def test_jitter_of_a_batch_is_that_of_each_image(order):
    jitter = (0.4, 0.3, 0.8, 0.1)
    colours = Colours(32, IMAGENET, with_shares(jitter=jitter, jittered=1.0))
    images = bytes_of(5)
    u, _ = colours.draw(5, torch.Generator().manual_seed(1))
    steps = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    for out, image, row in zip(pixels(colours.batch(images, u, order)), images, u, strict=True):
        x = image.float() / 255
        for i in order:
            turn = jitter[i] * (2 * float(row[1 + i]) - 1)
            x = steps[i](x, turn if i == 3 else 1 + turn)
        # kornia's greys weigh by .299, .587, .114, torchvision's by .2989, .587, .114
        assert (out - x).abs().max() < 1e-3


def test_greys_blurs_and_solarisations_of_a_batch_are_those_of_each_image():
    images = bytes_of(64)
    u, order = Colours(32, IMAGENET, CALM).draw(64, torch.Generator().manual_seed(2))
    for number, share in (
        (5, {"gray": 0.3}),
        (6, {"blurred": (0.6, 0)}),
        (8, {"solarized": (0.4, 0)}),
    ):
        ((name, value),) = share.items()
        expected = value if name == "gray" else value[0]
        out = pixels(Colours(32, IMAGENET, with_shares(**share)).batch(images, u, order))
        changed = 0
        for x, image, row in zip(out, images, u, strict=True):
            plain, taken = image.float() / 255, float(row[number]) < expected
            if taken and name == "gray":
                plain = F.rgb_to_grayscale(plain, 3)
            if taken and name == "blurred":
                plain = F.gaussian_blur(plain, 13, 0.1 + 1.9 * float(row[7]))
            if taken and name == "solarized":
                plain = F.solarize(image, 128).float() / 255
            changed += taken
            assert (x - plain).abs().max() < 1e-5, name
        assert 0 < changed < 64


@pytest.mark.parametrize("name", ["symmetric", "asymmetric", "resa", "byol"])
def test_batches_are_as_bright_as_single_images(name):
    """Mean and spread of 500 single draws and 2000 of batches, within five standard errors."""
    image = F.to_pil_image(bytes_of(1, 96)[0] // 2)
    view = photo_views(96, name)["strong"]
    torch.manual_seed(0)
    crop = F.pil_to_tensor(image)
    whole = view.colours.transform()
    singly = torch.stack([pixels(whole(image)) for _ in range(500)])
    u, _ = view.colours.draw(2000, torch.Generator().manual_seed(0))
    batch = torch.cat(
        [
            pixels(view.colours.batch(crop.expand(100, -1, -1, -1), part, order))
            for part, order in zip(
                u.split(100), [torch.randperm(4).tolist() for _ in range(20)], strict=True
            )
        ]
    )
    for figure in (lambda x: x.mean((1, 2, 3)), lambda x: x.std((2, 3)).mean(1)):
        a, b = figure(singly), figure(batch)
        error = math.sqrt(float(a.var() / len(a) + b.var() / len(b)))
        assert abs(float(a.mean() - b.mean())) < 5 * error + 2e-3


def test_asymmetric_views_differ_in_solarisation_alone():
    """White stays bright unless solarised, whatever the jitter."""
    source = data.Source(None, None, None, print, photo_views(32, "asymmetric"), 3, 32)
    white = Image.new("RGB", (40, 40), "white")
    torch.manual_seed(0)
    for view, share in zip(source.chosen(["strong"] * 3), (0, 0.2, 0.2), strict=True):
        dark = torch.stack([pixels(view(white)).mean() < 0.5 for _ in range(400)]).float().mean()
        assert abs(float(dark) - share) <= 4 * math.sqrt(share * (1 - share) / 400)


def test_views_are_chosen_by_name_and_turn():
    source = data.Source(None, None, None, None, photo_views(32, "asymmetric"), 3, 32)
    first, local, again, third = source.chosen(["strong", "local", "strong", "strong"])
    assert first is source.views["strong"]
    assert local is source.views["local"]
    assert again is third is source.views["strong again"]
    same = data.Source(None, None, None, None, photo_views(32, "resa"), 3, 32)
    first, again = same.chosen(["strong", "strong"])
    assert first is again


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("size", [32, 96, 224])
def test_every_recipe_makes_views(name, size):
    image = F.to_pil_image(bytes_of(1, 70)[0])
    for kind, view in photo_views(size, name).items():
        side = size if kind != "local" else 96 if size == 224 else size // 2
        assert view(image).shape == (3, side, side)
        crops = view.crop(image)[None]
        assert crops.dtype == torch.uint8 and crops.shape[1:] == (3, side, side)
        out = view.colours.batch(crops, *view.colours.draw(1, torch.Generator()))
        assert out.shape == crops.shape and bool(out.isfinite().all())


def test_resas_crops_are_bilinear_where_weak_and_bicubic_where_strong():
    """Bicubic crops of a step overshoot it, bilinear ones do not."""
    step = torch.zeros(3, 24, 24, dtype=torch.uint8)
    step[:, :, :12], step[:, :, 12:] = 64, 192
    views, found = photo_views(96, "resa"), {}
    for name in ("weak", "strong"):
        torch.manual_seed(0)
        crops = torch.stack([views[name].crop(F.to_pil_image(step)) for _ in range(50)])
        found[name] = int(crops.min()), int(crops.max())
    assert found["weak"] == (64, 192)
    assert found["strong"][0] < 64 and found["strong"][1] > 192


def test_weak_views_keep_their_colours():
    colours = photo_views(32, "symmetric")["weak"].colours
    images = bytes_of(8)
    out = colours.batch(images, *colours.draw(8, torch.Generator()))
    assert torch.allclose(pixels(out), images.float() / 255, atol=1e-6)


@pytest.mark.parametrize("on_device", [False, True])
def test_a_rank_sees_its_share_of_the_global_batch(folder, on_device):
    source = data.open_data("imagefolder", seed=3, data_dir=str(folder), image_size=32)

    def batches(rank, world):
        order = build_order("epoch", source.pretrain, batch_size=8, seed=3)
        images = data.ViewData(source, ("weak", "strong"), order, 0, on_device)
        images.trainer = SimpleNamespace(world_size=world, global_rank=rank, global_step=0)
        return [images.on_after_batch_transfer(b, 0) for b in images.train_dataloader()]

    whole = batches(0, 1)
    assert len(whole) == 4
    assert not torch.equal(whole[0][0][1], whole[1][0][1])
    for rank in (0, 1):
        for (views, index), (all_views, all_index) in zip(batches(rank, 2), whole, strict=True):
            assert torch.equal(index, all_index[rank::2])
            for part, view in zip(views, all_views, strict=True):
                assert part.dtype == torch.float32
                # the convolution behind blurs rounds by the batch's size
                assert torch.allclose(part, view[rank::2], atol=1e-5)


def weights(path):
    return torch.load(path / "last.ckpt", weights_only=True)["state_dict"]


def test_training_with_colours_on_the_device(folder, tmp_path, monkeypatch):
    """Two epochs, and one that is resumed for a second, end with the same weights."""
    monkeypatch.setattr(run, "finish", lambda *arguments: None)
    command = (
        f"train --method byol --data imagefolder --data-dir {folder} --image-size 32 --encoder "
        "small-4 --batch-size 8 --workers 0 --progress off --augment-on device --epochs 2"
    ).split()
    assert main([*command, "--run-dir", str(tmp_path / "whole")]) == 0
    draw, drawn = Colours.draw, []

    def crash(self, *arguments):
        drawn.append(self)
        if len(drawn) == 13:  # two views of four batches an epoch
            raise RuntimeError("power failure")
        return draw(self, *arguments)

    monkeypatch.setattr(Colours, "draw", crash)
    with pytest.raises(RuntimeError, match="power failure"):
        main([*command, "--run-dir", str(tmp_path / "stopped")])
    assert main(["train", "--resume", str(tmp_path / "stopped")]) == 0
    whole, stopped = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert all(torch.equal(value, stopped[name]) for name, value in whole.items())


@pytest.mark.parametrize(
    ("method", "small", "large"),
    [
        ("simclr", "symmetric", "symmetric"),
        ("moco_v2", "symmetric_weak", "moco"),
        ("byol", "asymmetric", "byol"),
        ("vicreg", "vicreg", "byol"),
        ("wmse", "wmse", "wmse"),
        ("mae", "reconstruction", "mae"),
        ("resa", "resa", "resa"),
        ("pmsn", "msn", "msn"),
        ("pauc", "moco", "moco"),
    ],
)
def test_methods_have_their_sources_views(method, small, large):
    assert config.preset(method, "cifar10").get("augmentation", "resa") == small
    assert config.preset(method, "imagefolder").get("augmentation", "resa") == large


def test_normalisation_is_the_data_sets():
    images = [(Image.new("RGB", (32, 32), "white"), 0)]
    for name, blue in (("cifar10", 0.4465), ("cifar100", 0.4409), ("stl10", 0.4466), ("", 0.406)):
        source = data._photos(images, images, 32, "symmetric", name)
        assert source.statistics[0][2] == blue
        white = [(1 - m) / s for m, s in zip(*source.statistics, strict=True)]
        for out in (source.plain(images[0][0]), source.views["weak"](images[0][0])):
            assert torch.allclose(out, torch.tensor(white).view(3, 1, 1).expand_as(out))


def test_unknown_recipe(folder):
    with pytest.raises(UsageError, match="Did you mean 'symmetric'"):
        data.open_data("imagefolder", seed=0, data_dir=str(folder), augmentation="symetric")


def test_without_kornia(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "kornia", None)
    command = ["train", "--data", "imagefolder", "--data-dir", str(folder), "--batch-size", "8"]
    more = ["--augment-on", "device", "--run-dir", str(tmp_path / "run")]
    assert main([*command, *more]) == 2
    assert "pip install kornia" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
