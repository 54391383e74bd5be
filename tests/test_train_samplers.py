"""Samplers: probabilities by enumeration, counts over whole epochs, shares, resuming, refusals."""

import os
import signal
from collections import Counter
from fractions import Fraction
from itertools import permutations
from math import comb, factorial, floor

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

for package in ("lightning", "torchvision", "sklearn", "jsonargparse"):
    pytest.importorskip(package, reason="the driver needs pip install ssl_fast[train]")

from ssl_fast.cli import main  # noqa: E402
from ssl_fast.train import callbacks, data, run  # noqa: E402
from ssl_fast.train.errors import UsageError  # noqa: E402
from ssl_fast.train.samplers import SAMPLERS, Deck, Share, build_order  # noqa: E402


def labelled(*counts):
    """Images of which class i has counts[i], in random order."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels))]
    return TensorDataset(torch.zeros(len(labels), 1), labels)


def outcomes(draw, monkeypatch):
    """What `draw` returns for every outcome of its shuffles, with the outcome's probability."""
    script, chosen, place = [], [], 0

    def randperm(n, generator):
        nonlocal place
        if place == len(script):
            script.append(permutations(range(n)))
            chosen.append(next(script[-1]))
        place += 1
        return torch.tensor(chosen[place - 1])

    monkeypatch.setattr(torch, "randperm", randperm)
    while True:
        place = 0
        result = draw()
        probability = Fraction(1)
        for order in chosen:
            probability /= factorial(len(order))
        yield probability, result
        while script and (following := next(script[-1], None)) is None:
            script.pop(), chosen.pop()
        if not script:
            return
        chosen[-1] = following


@pytest.mark.parametrize(
    ("counts", "classes"), [((2, 2, 2), 2), ((1, 2, 3), 2), ((1, 2), 2), ((2, 3), 1)]
)
def test_probability_of_an_image(counts, classes, monkeypatch):
    """Paper 000, G: (n / N) * (k / C) for n images of each of k of C classes, in every batch."""
    images, batch_size = labelled(*counts), 2
    order = build_order("class_imbalanced", images, batch_size, 0, classes)
    order.batches = 2
    total, found = Fraction(0), [Counter(), Counter()]
    for probability, drawn in outcomes(lambda: order.draw(None), monkeypatch):
        total += probability
        for counter, batch in zip(found, drawn.view(2, batch_size).tolist(), strict=True):
            assert len(set(batch)) == batch_size
            counter.update(dict.fromkeys(batch, probability))
    assert total == 1
    each = batch_size // classes
    for image, label in enumerate(images.tensors[1].tolist()):
        expected = Fraction(each, counts[label]) * Fraction(classes, len(counts))
        assert [counter[image] for counter in found] == [expected] * 2


def test_hands_are_random_subsets(monkeypatch):
    """Also the hand that spans two shuffles: each pair of four cards with probability 1/6."""
    found = Counter()

    def third_hand():
        deck = Deck([0, 1, 2, 3], None)
        return [deck.deal(3), deck.deal(2)][1]

    for probability, hand in outcomes(third_hand, monkeypatch):
        found[frozenset(hand)] += probability
    assert set(found.values()) == {Fraction(1, comb(4, 2))}


@pytest.mark.parametrize(
    ("name", "classes", "found"),
    [("class_balanced", 0, 8), ("class_balanced", 4, 4), ("class_imbalanced", 0, 2)],
)
def test_classes_of_a_batch(name, classes, found):
    images = labelled(*[40] * 10)
    order = build_order(name, images, 64, 0, classes)
    labels = images.tensors[1]
    drawn = torch.cat([order(epoch) for epoch in range(5)]).view(-1, 64)
    assert len(drawn) == 5 * (400 // 64)
    for batch in drawn:
        assert len(batch.unique()) == 64
        _, counts = labels[batch].unique(return_counts=True)
        assert counts.tolist() == [64 // found] * found
    assert not torch.equal(labels[drawn[0]].sort().values, labels[drawn[0]]), "mixed"


@pytest.mark.parametrize("classes", [1, 2, 8])
def test_classes_and_images_take_turns(classes):
    """Counts over an epoch differ by one turn at most, whatever the classes a batch."""
    images = labelled(*range(16, 26))
    order = build_order("class_balanced", images, 16, 0, classes)
    labels, each = images.tensors[1], 16 // classes
    for epoch in range(3):
        drawn = order(epoch)
        turns = torch.bincount(labels[drawn], minlength=10) // each
        assert turns.max() - turns.min() <= 1
        assert turns.sum() == 12 * classes
        times = torch.bincount(drawn, minlength=len(labels))
        for label in range(10):
            assert times[labels == label].max() - times[labels == label].min() <= 1


def test_an_epoch_holds_each_image_once():
    order = build_order("epoch", labelled(7, 6), 4, 0)
    assert len(order) == 12
    assert len(order(0).unique()) == 12
    assert not torch.equal(order(0), order(1))


def test_inverse_square_root_frequency_is_exact_where_it_can_be():
    """Classes of 1, 4 and 9 images have the shares 1, 2 and 3 of 6: 2, 4 and 6 of 12."""
    images = labelled(1, 4, 9)
    order = build_order("inverse_sqrt", images, 6, 0)
    for epoch in range(20):
        assert torch.bincount(images.tensors[1][order(epoch)]).tolist() == [2, 4, 6]


def test_inverse_square_root_frequency():
    """Every class and every image as often as expected, rounded up or down, in each epoch."""
    counts = np.array([3, 700, 50, 1, 200])
    images = labelled(*counts)
    labels = images.tensors[1].numpy()
    order = build_order("inverse_sqrt", images, 90, 0)
    by_class = len(order) * np.sqrt(counts) / np.sqrt(counts).sum()
    by_image = (by_class / counts)[labels]
    total = np.zeros(len(labels))
    for epoch in range(50):
        times = np.bincount(order(epoch), minlength=len(labels))
        assert (abs(times - by_image) < 1).all()
        assert (abs(np.bincount(labels, times) - by_class) < 1).all()
        total += times
    head = total[labels == 1]
    assert head.min() < floor(50 * by_image.min()) < head.max(), "images take turns at random"


def test_positions_of_inverse_square_root_frequency(monkeypatch):
    """Each place in the epoch has each class with its probability: over all shuffles."""
    images = labelled(1, 4)
    order = build_order("inverse_sqrt", images, 3, 0)
    found = [Counter() for _ in range(3)]
    for probability, drawn in outcomes(
        lambda: order.draw(torch.Generator().manual_seed(0)), monkeypatch
    ):
        for counter, label in zip(found, images.tensors[1][drawn].tolist(), strict=True):
            counter[label] += probability
    assert found == [{0: Fraction(1, 3), 1: Fraction(2, 3)}] * 3


@pytest.mark.parametrize("name", SAMPLERS)
def test_orders_follow_seed_and_epoch(name):
    images = labelled(9, 9, 9)
    first, again, other = (build_order(name, images, 6, seed) for seed in (0, 0, 1))
    assert torch.equal(first(3), again(3))
    assert not torch.equal(first(3), first(4))
    assert not torch.equal(first(3), other(3))


def keys(share, epoch):
    share.set_epoch(epoch)
    drawn = list(share)
    assert len(drawn) == len(share) or share.skip[1]
    return drawn


@pytest.mark.parametrize("name", SAMPLERS)
def test_ranks_share_the_global_batch(name):
    order = build_order(name, labelled(9, 9, 9), 6, 0)
    whole = keys(Share(order, 1, 0, (0, 0)), 2)
    assert [draw for draw, _ in whole] == list(range(2 * 24, 3 * 24))
    for world in (2, 3):
        shares = [keys(Share(order, world, rank, (0, 0)), 2) for rank in range(world)]
        assert [key for keys in zip(*shares, strict=True) for key in keys] == whole


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_interrupted_epoch_goes_on(name):
    order = build_order(name, labelled(9, 9, 9), 6, 0)
    for world, rank in ((1, 0), (2, 1)):
        whole = Share(order, world, rank, (0, 0))
        rest = Share(order, world, rank, (3, 2))
        assert keys(rest, 3) == keys(whole, 3)[2 * 6 // world :]
        assert keys(rest, 4) == keys(whole, 4)


def test_a_repeated_image_has_another_view():
    images = data.Views([(torch.zeros(1), 0)], [lambda image: torch.rand(3)], seed=0)
    (first,), *_ = images[0, 0]
    (again,), *_ = images[1, 0]
    assert not torch.equal(first, again)


def test_names_of_classes_may_be_any_numbers():
    images = TensorDataset(torch.zeros(6), torch.tensor([7, 3, 3, 7, 7, 3]))
    drawn = build_order("class_imbalanced", images, 2, 0, 1)(0).view(3, 2)
    labels = images.tensors[1][drawn]
    assert (labels[:, 0] == labels[:, 1]).all()


def test_unlabelled_images_take_no_classes():
    images = TensorDataset(torch.zeros(4), torch.tensor([0, -1, 1, -1]))
    build_order("epoch", images, 2, 0)
    with pytest.raises(UsageError, match="2 of the 4 training images have no label"):
        build_order("inverse_sqrt", images, 2, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--sampler class_inbalanced", "Did you mean 'class_imbalanced'?"),
        ("--sampler class_imbalanced --classes-per-batch 12", "between 1 and the 10 classes"),
        ("--sampler class_balanced --classes-per-batch -1", "got -1"),
        (
            "--sampler class_imbalanced --classes-per-batch 3 --batch-size 64",
            "no multiple of 3 classes; --classes-per-batch may be 1, 2, 4, 8",
        ),
        (
            "--sampler class_imbalanced --classes-per-batch 1 --batch-size 256",
            "takes 256 images of each of its 1 classes, and class 8 has 139",
        ),
        ("--classes-per-batch 2", "--sampler epoch takes no --classes-per-batch; these do: class_"),
    ],
)
def test_mistakes_are_explained(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments.split()]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert not list(tmp_path.iterdir()), "a refused run leaves no folder behind"


def test_a_run_terminated_inside_an_epoch_goes_on(tmp_path, monkeypatch):
    """All batches hold two digits, and the weights at the end are bitwise those of one run."""
    drawn, last = [], 0
    forward = data.ViewData.on_after_batch_transfer

    def watched(self, batch, dataloader_idx):
        drawn.append(batch[1])
        if len(drawn) == last:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, batch, dataloader_idx)

    monkeypatch.setattr(data.ViewData, "on_after_batch_transfer", watched)
    monkeypatch.setattr(run, "finish", lambda *arguments: None)
    monkeypatch.setattr(callbacks.Monitor, "_accuracy", lambda *arguments: 0.0)
    command = (
        "train --method simclr --encoder small-4 --epochs 2 --batch-size 256 "
        "--sampler class_imbalanced --progress off"
    ).split()

    def checkpoint(name):
        return torch.load(tmp_path / name / "last.ckpt", weights_only=True)

    assert main([*command, "--run-dir", str(tmp_path / "whole")]) == 0
    images = data.open_data("digits", seed=0).pretrain
    order = build_order("class_imbalanced", images, 256, 0)
    assert torch.equal(torch.cat(drawn), torch.cat([order(0), order(1)]))
    labels = images.tensors[1][torch.stack(drawn)]
    assert [row.unique(return_counts=True)[1].tolist() for row in labels] == [[128, 128]] * 10

    drawn, last = [], 7
    assert main([*command, "--run-dir", str(tmp_path / "stopped")]) == 2
    assert checkpoint("stopped")["global_step"] == 7
    drawn, last = drawn[:7], 0  # without what was fetched ahead
    assert main(["train", "--resume", str(tmp_path / "stopped")]) == 0
    assert torch.equal(torch.cat(drawn), torch.cat([order(0), order(1)]))
    resumed = checkpoint("stopped")["state_dict"]
    expected = checkpoint("whole")["state_dict"]
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())
