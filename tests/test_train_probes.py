"""Classifiers on an encoder: linear ones, shares of the labels, fine-tuning."""

import numpy as np
import pytest
import torch

for package in ("lightning", "torchvision", "sklearn", "timm"):
    pytest.importorskip(package, reason="the driver needs pip install ssl_fast[train]")

from ssl_fast.train import probes  # noqa: E402
from ssl_fast.train.evaluate import Features  # noqa: E402
from ssl_fast.train.models import build_encoder  # noqa: E402


def blobs(scale=1.0, count=60):
    """Three classes apart from each other, their labels not 0, 1, 2."""
    random = np.random.default_rng(0)
    labels = np.repeat([2, 5, 9], count)
    rows = np.eye(3, 8)[np.repeat([0, 1, 2], count)] + 0.1 * random.normal(size=(3 * count, 8))
    rows = (scale * rows).astype(np.float32)
    return Features(rows[::2], labels[::2], rows[1::2], labels[1::2])


def test_linear_classifiers():
    f = blobs()
    assert probes.linear_accuracy(f) == 1
    shuffled = f._replace(train_labels=np.random.default_rng(1).permutation(f.train_labels))
    assert probes.linear_accuracy(shuffled) < 0.7
    far = f._replace(train=f.train + 1000, test=f.test + 1000)
    near = probes.linear_accuracy(f, batch_norm=True, epochs=50)
    assert near > 0.7
    assert probes.linear_accuracy(far, batch_norm=True, epochs=50) == pytest.approx(near, abs=0.02)
    assert probes.linear_accuracy(far, epochs=50) < 0.5
    unseen = f._replace(test_labels=np.full_like(f.test_labels, 7))
    assert probes.linear_accuracy(unseen, epochs=1) == 0


def test_a_share_of_each_class():
    labels = np.repeat([0, 1, 2], [1, 50, 200])
    rows = probes.some_of_each_class(labels, 0.1, seed=0)
    assert np.bincount(labels[rows]).tolist() == [1, 5, 20]
    assert np.array_equal(rows, probes.some_of_each_class(labels, 0.1, seed=0))
    assert not np.array_equal(rows, probes.some_of_each_class(labels, 0.1, seed=1))


def test_finetuning_learns_and_leaves_the_encoder():
    """Two classes that differ in brightness, from an encoder that is drawn at random."""
    torch.manual_seed(0)
    encoder = build_encoder("small-4", 1, 32)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    labels = np.repeat([3, 8], 16)
    images = torch.rand(32, 1, 32, 32) * torch.tensor(labels).view(-1, 1, 1, 1) / 8
    dataset = torch.utils.data.TensorDataset(images, torch.tensor(labels))
    test = torch.utils.data.DataLoader(dataset, 8)
    found = probes.finetuned_accuracy(encoder, dataset, labels, test, epochs=40, lr=0.05)
    assert found > 0.9
    after = encoder.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
