"""`ssl-fast experiment uniform-prior`: its images, its numbers, and a tiny run."""

import json

import numpy as np
import pytest
import torch

for package in ("lightning", "torchvision", "sklearn", "matplotlib", "timm", "jsonargparse"):
    pytest.importorskip(package, reason="experiments need pip install ssl_fast[train]")

from ssl_fast.cli import main  # noqa: E402
from ssl_fast.experiments import uniform_prior  # noqa: E402
from ssl_fast.experiments.two_features import two_features  # noqa: E402
from ssl_fast.train.evaluate import Features  # noqa: E402
from ssl_fast.train.run import build_method  # noqa: E402


def test_a_power_law_digit_on_a_uniform_background():
    source = two_features(0, images=4000, held_out=500, exponent=0.5)
    images, labels = source.train.tensors
    assert images.shape == (4000, 1, 32, 32)
    assert 0 <= images.min() and images.max() <= 1
    digits, backgrounds = np.bincount(labels // 10), np.bincount(labels % 10)
    share = np.arange(1, 11) ** -0.5
    np.testing.assert_allclose(sorted(digits / 4000)[::-1], share / share.sum(), atol=0.02)
    np.testing.assert_allclose(backgrounds / 4000, 0.1, atol=0.02)
    joint = np.histogram2d(labels // 10, labels % 10, bins=10)[0] / 4000
    np.testing.assert_allclose(joint, np.outer(digits, backgrounds) / 4000**2, atol=0.01)


def test_images_follow_the_seed():
    first, again, other = (two_features(s, 50, 50, 0.5).train.tensors[0] for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_backgrounds_can_be_told_apart_and_so_can_digits():
    """By nearest neighbours on the part of the image where the feature is."""
    source = two_features(0, 3000, 300, 0.5)
    (train, known), (test, true) = source.train.tensors, source.test.tensors
    spectrum = [torch.fft.rfft2(x[:, 0, 18:]).abs().flatten(1) for x in (train, test)]
    corner = [x[:, 0, 2:18, 2:18].flatten(1) for x in (train, test)]
    for rows, feature in ((spectrum, lambda y: y % 10), (corner, lambda y: y // 10)):
        nearest = torch.cdist(rows[1], rows[0]).argmin(1)
        assert (feature(known)[nearest] == feature(true)).float().mean() > 0.8


def test_shares_of_neighbours():
    """Embeddings that are the digit, encodings that are the background."""
    labels = np.array([10 * d + b for d in range(10) for b in range(10)] * 6)
    digit, background = np.eye(10)[labels // 10], np.eye(10)[labels % 10]
    features = [Features(x, labels, x, labels) for x in (background, digit)]
    digit_z, background_z, digit_h, background_h = uniform_prior._shares(features)
    assert (digit_z, background_h) == (1, 1)
    assert background_z < 0.5 and digit_h < 0.5


def test_a_tiny_run(tmp_path):
    options = "--images 128 --held-out 64 --epochs 2 --batch-size 64 --encoder small-4 --seeds 1"
    command = ["experiment", "uniform-prior", *options.split(), "--lr", "0.05"]
    assert main([*command, "--run-dir", str(tmp_path)]) == 0
    assert (tmp_path / "neighbours.png").read_bytes().startswith(b"\x89PNG")
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row[:2] for row in rows] == [
        [prior, seed] for prior in ("untrained", "uniform", "power_law") for seed in (0, "mean")
    ] + [["chance", "-"]]
    assert all(0 <= cell <= 1 for row in rows for cell in row[2:])
    assert rows[2][2:] != rows[4][2:], "the prior reaches the loss"


def test_the_prior_is_all_that_differs():
    o = uniform_prior.Options(exponent=0.5)
    source = two_features(0, 50, 50, 0.5)
    for prior, name in (("uniform", "uniform"), ("power_law", "given")):
        job = uniform_prior.job_of(o, prior, 0)
        loss = build_method(job.options, job.own, source).criterion
        assert (loss.temperature, loss.sharpening, loss.prior_weight) == (0.1, 0.25, 100.0)
        assert loss.sinkhorn_iterations == 0 and loss.prior.name == name
    share = np.arange(1, 11) ** -0.5
    assert loss.prior.given.tolist() == pytest.approx(share / share.sum())


def test_impossible_sizes_are_refused(capsys, tmp_path):
    command = ["experiment", "uniform-prior", "--batch-size", "100", "--images", "64"]
    assert main([*command, "--run-dir", str(tmp_path)]) == 2
    assert "batch_size at most images" in capsys.readouterr().err
