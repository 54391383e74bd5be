"""Long-tailed training sets: published sizes, exact shares, what stays whole, what they feed."""

import pytest
import torch
from torch.utils.data import TensorDataset

for package in ("lightning", "torchvision", "sklearn", "jsonargparse"):
    pytest.importorskip(package, reason="the driver needs pip install ssl_fast[train]")

from ssl_fast.cli import main  # noqa: E402
from ssl_fast.train import assess, callbacks, data, run  # noqa: E402
from ssl_fast.train.config import TrainOptions  # noqa: E402
from ssl_fast.train.errors import UsageError  # noqa: E402
from ssl_fast.train.labels import labels_of, take  # noqa: E402
from ssl_fast.train.longtail import LongTail, cut  # noqa: E402
from ssl_fast.train.prior import Prior  # noqa: E402
from ssl_fast.train.subject import EvalOptions  # noqa: E402


@pytest.mark.parametrize(
    ("classes", "factor", "images", "smallest"),
    [
        (100, 20, 15907, 25),  # ReSA paper, C.3
        (100, 100, 10847, 5),  # and the sizes that long-tail papers print
        (100, 50, 12608, 10),
        (100, 10, 19573, 50),
        (10, 100, 12406, 50),
    ],
)
def test_published_cifar_lt_sizes(classes, factor, images, smallest):
    each = 50000 // classes
    sizes = LongTail("imbalance", factor).sizes(torch.full((classes,), each))
    assert (int(sizes.sum()), int(sizes[0]), int(sizes[-1])) == (images, each, smallest)


def test_a_power_law():
    sizes = LongTail("power_law", tail_exponent=0.5).sizes(torch.full((9,), 600))
    assert sizes.tolist() == [600, 424, 346, 300, 268, 244, 226, 212, 200]
    assert LongTail("power_law", tail_exponent=0.0).sizes(torch.tensor([7, 5])).tolist() == [5, 5]


def test_unequal_classes_keep_the_shares():
    """The first class gives as many images as the scarcest class allows for."""
    tail = LongTail("imbalance", 100)
    assert tail.sizes(torch.tensor([1000, 50, 30])).tolist() == [500, 50, 5]
    assert tail.sizes(torch.tensor([80])).tolist() == [80]


@pytest.fixture(scope="module")
def digits():
    return data.open_data("digits", seed=0)


def test_the_training_set_is_cut_and_the_test_set_is_not(digits):
    source = cut(digits, LongTail("imbalance", 20), seed=0)
    assert source.test is digits.test
    assert source.train is source.pretrain
    sizes = torch.bincount(labels_of(source.pretrain))
    expected = LongTail("imbalance", 20).sizes(torch.bincount(labels_of(digits.pretrain)))
    assert torch.equal(sizes, expected)
    assert (sizes[0] / sizes[-1]).round() == 20
    pixels = digits.pretrain.tensors[0].flatten(1).tolist()
    known = set(map(tuple, pixels))
    kept = {tuple(row) for row in source.pretrain.tensors[0].flatten(1).tolist()}
    assert len(kept) == len(source.pretrain) and kept <= known


def test_the_seed_draws_the_images(digits):
    first, again, other = (
        cut(digits, LongTail("power_law"), s).train.tensors[0] for s in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert first.shape == other.shape and not torch.equal(first, other)


def test_files_are_cut_too(digits):
    """Anything with labels that is not a tensor: a view of the data set by index."""

    class Files:
        targets = digits.pretrain.tensors[1].tolist()

        def __getitem__(self, index):
            return f"{index}.jpg", self.targets[index]

    files = cut(digits._replace(pretrain=Files()), LongTail("power_law"), seed=3).pretrain
    tensors = cut(digits, LongTail("power_law"), seed=3).pretrain
    assert torch.equal(labels_of(files), tensors.tensors[1])
    assert [label for _, label in files] == labels_of(files).tolist()


def test_an_unlabelled_image_may_be_left_out():
    images = TensorDataset(torch.zeros(3), torch.tensor([-1, 1, 0]))
    with pytest.raises(UsageError, match="1 of the 3 training images have no label"):
        labels_of(images)
    assert labels_of(take(images, torch.tensor([2, 1]))).tolist() == [0, 1]


def test_a_tail_without_images_is_refused(digits):
    with pytest.raises(UsageError, match="leaves no image of class 8, 9: lower"):
        cut(digits, LongTail("imbalance", 400), seed=0)


def test_the_class_prior_is_the_subsets(digits):
    options = TrainOptions(long_tail="imbalance", imbalance_factor=10)
    labels = labels_of(run.open_source(options).pretrain)
    shares = Prior("class", labels=labels).shares(10)
    torch.testing.assert_close(shares, torch.bincount(labels) / len(labels))
    assert shares[0] > 5 * shares[-1]
    assert run.open_source(TrainOptions()).pretrain.tensors[1].equal(digits.pretrain.tensors[1])


def test_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "finish", lambda *arguments: None)
    monkeypatch.setattr(callbacks.Monitor, "_accuracy", lambda *arguments: 0.0)
    command = (
        "train --method pmsn --encoder small-4 --epochs 1 --long-tail imbalance --prior class "
        "--pmsn.prototypes 20 --sampler class_imbalanced --batch-size 12 --progress off"
    )
    assert main([*command.split(), "--run-dir", str(tmp_path)]) == 0
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    digits = run.open_source(TrainOptions(long_tail="imbalance"))
    assert state["global_step"] == len(digits.pretrain) // 12
    assert "imbalance_factor: 20.0" in (tmp_path / "config.yaml").read_text()

    def measured(**options):
        return len(assess.open_subject(tmp_path, EvalOptions(**options)).source.train)

    assert (measured(), measured(data="digits")) == (len(digits.pretrain), 1437)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--long-tail imbalanced", "imbalance"),
        ("--long-tail imbalance --imbalance-factor 0.05", "imbalance_factor must be at least 1"),
        ("--long-tail power_law --tail-exponent -1", "tail_exponent must be at least 0, got -1"),
        (
            "--long-tail imbalance --sampler class_imbalanced",
            "takes 32 images of each of its 2 classes, and class 9 has",
        ),
    ],
)
def test_mistakes_are_explained(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments.split()]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert not list(tmp_path.iterdir()), "a refused run leaves no folder behind"
