"""Presets of papers: each names options that exist, with values that the method takes."""

import pytest
import torch

for package in ("lightning", "torchvision", "sklearn", "timm", "jsonargparse"):
    pytest.importorskip(package, reason="the driver needs pip install ssl_fast[train]")

from ssl_fast.train import config, run  # noqa: E402
from ssl_fast.train.data import Source  # noqa: E402
from ssl_fast.train.errors import UsageError  # noqa: E402
from ssl_fast.train.methods import METHODS  # noqa: E402

PHOTOS = {"cifar10": 32, "cifar100": 32, "stl10": 96, "inaturalist": 224, "imagefolder": 224}


def build(argv):
    """The options, and the method without memory for its weights."""
    _, values = config.parse(argv)
    options, own = config.options_of(values)
    config.check(options)
    images = [None] * 2 * options.batch_size * 1000
    source = Source(images, images, images, None, {}, 3, PHOTOS[options.data])
    place = "cpu" if options.method == "pmsn" else "meta"  # a prior's numbers are looked at
    with torch.device(place):
        return options, run.build_method(options, own, source)


@pytest.mark.parametrize("data", PHOTOS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_preset_for_photographs(method, data):
    options, built = build(["--method", method, "--data", data])
    assert options.epochs >= 100
    assert built.views


@pytest.mark.parametrize("name", config.PUBLISHED)
def test_published_configurations(name):
    options, _ = build(["--config", name])
    assert (options.uniformity, options.epochs) == ("w2", 500)
    assert options.augmentation == "wasserstein"
    assert f"wasserstein-{options.method}" == name
    other, _ = build([f"--config={name}", "--data=cifar100"])
    assert (options.data, other.data, other.lr) == ("cifar10", "cifar100", 0.2)


def test_the_wasserstein_runs_have_the_published_networks_and_weights():
    o, moco = build(["--config", "wasserstein-moco_v2"])
    widths = [layer.out_features for layer in moco.online[1] if isinstance(layer, torch.nn.Linear)]
    assert widths == [2048, 2048, 256]
    assert any(isinstance(layer, torch.nn.BatchNorm1d) for layer in moco.online[1])
    # a sum of both directions plus 1.0 W2, halved; so are the gradients of biases
    assert (o.uniformity_weight, o.lr_undecayed) == (0.5, 0.01)
    o, byol = build(["--config", "wasserstein-byol"])
    assert (byol.target.start, byol.target.end) == (0.99, 0.99)
    assert (o.uniformity_weight, o.lr_undecayed) == (0.2, 0.005)


def test_set_is_another_way_to_write_options():
    words = ["--set", "method=swav", "--set=data=cifar10", "--set", "swav.prototypes=64"]
    options, method = build([*words, "--set", "batch-size=8", "--seed", "2"])
    assert (options.method, options.data, options.batch_size, options.seed) == (
        "swav", "cifar10", 8, 2
    )  # fmt: skip
    assert method.centres().shape[0] == 64


def test_set_in_a_file_is_refused(tmp_path):
    (tmp_path / "options.yaml").write_text("set: epochs=3\n")
    with pytest.raises(UsageError, match="set is for the command line"):
        build(["--config", str(tmp_path / "options.yaml")])


def test_a_name_is_a_preset_behind_config_alone():
    options, _ = build(["--data", "cifar10", "--run-dir", "wasserstein-byol"])
    assert (options.method, options.run_dir) == ("resa", "wasserstein-byol")


@pytest.mark.parametrize("method", METHODS)
def test_small_images(method):
    """solo-learn's methods have its stem; the others, and transformers, what their source has."""
    o, _ = build(["--method", method, "--data", "cifar10"])
    padded = "simclr moco_v2 moco_v3 nnclr byol simsiam barlow_twins vicreg swav dino wmse zero_cl"
    expected = {"mae": "vit-small/4", "data2vec": "vit-small/4"}.get(method, "resnet18")
    assert o.encoder == ("resnet18-pad2" if method in padded.split() else expected)
    assert o.lars_clip == (o.optimizer == "lars")
    assert not build(["--method", method, "--data", "imagefolder"])[0].lars_clip


def test_inaturalist():
    o, method = build(["--method", "pmsn", "--data", "inaturalist"])
    assert (o.encoder, o.batch_size, o.epochs) == ("vit-small/16", 4096, 300)
    assert (o.warmup_epochs, o.weight_decay, o.weight_decay_end, o.clip) == (15, 0.04, 0.4, 3.0)
    assert method.centres().shape[0] == 8142


@pytest.mark.parametrize(
    ("method", "expected"),
    {
        "simclr": ("resnet50", 4096, 300, 4.8),
        "vicreg": ("resnet50", 1024, 300, 0.8),
        "msn": ("vit-base/16", 1024, 300, 1e-3),
        "pmsn": ("vit-small/16", 4096, 300, 1e-3),
        "mae": ("vit-large/16", 1024, 800, 6e-4),
        "data2vec": ("vit-base/16", 2048, 800, 2e-3),
        "resa": ("resnet50", 1024, 100, 2.0),
        "pcl": ("resnet50", 256, 200, 0.03),
    }.items(),
)
def test_imagenet(method, expected):
    o, _ = build(["--method", method, "--data", "imagefolder"])
    assert (o.encoder, o.batch_size, o.epochs, o.lr) == expected
