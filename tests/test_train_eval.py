"""`ssl-fast eval`: its measures, its files, what it refuses."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch

for package in ("lightning", "torchvision", "sklearn", "timm", "faiss", "jsonargparse", "rich"):
    pytest.importorskip(package, reason="the driver needs pip install ssl_fast[train]")

from ssl_fast import metrics  # noqa: E402
from ssl_fast.cli import main  # noqa: E402
from ssl_fast.train import assess, callbacks, measures, run  # noqa: E402
from ssl_fast.train.errors import UsageError  # noqa: E402
from ssl_fast.train.evaluate import Features  # noqa: E402
from ssl_fast.train.measures import MEASURES  # noqa: E402
from ssl_fast.train.models import average_patches, build_encoder  # noqa: E402
from ssl_fast.train.prior import Prior  # noqa: E402
from ssl_fast.train.subject import EvalOptions  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
COMMAND = (
    "train --data digits --encoder small-4 --batch-size 256 --epochs 1 --threads 1 --workers 0 "
    "--accelerator cpu --progress off"
).split()
QUICK = "--limit 300 --linear-epochs 20 --finetune-epochs 2 --device cpu --workers 0".split()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One epoch each, without what a run measures itself."""
    folder = tmp_path_factory.mktemp("runs")
    small = "{name}.hidden-dim 32 --{name}.embedding-dim 16".replace("{name}", "--{name}", 1)
    own = {
        "pmsn": "--pmsn.prototypes 20 --pmsn.focal-views 1",
        "pcl": "--pcl.clusters [5,8] --pcl.first-epoch 0 --pcl.queue-length 256",
        "simclr": "",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "finish", lambda *arguments: None)
        patch.setattr(callbacks.Monitor, "_accuracy", lambda *arguments: 0.0)
        for name, more in own.items():
            options = [*small.replace("{name}", name).split(), *more.split()]
            where = ["--run-dir", str(folder / name)]
            assert main([*COMMAND, "--method", name, *options, *where]) == 0
    return folder


def subject(runs, name, **options):
    options = {"limit": 300, "device": "cpu", "linear_epochs": 20} | options
    return assess.open_subject(runs / name, EvalOptions(**options))


def test_everything_that_a_run_can_have(runs, capsys):
    folder = runs / "pmsn"
    assert main(["eval", str(folder), *QUICK]) == 0
    found = json.loads((folder / "eval.json").read_text())
    assert set(found["measures"]) == set(MEASURES) - {"last_four", "coarse"}
    assert "the encoder is small-4" in found["skipped"]["last_four"]
    assert "--coarse FILE" in found["skipped"]["coarse"]
    rows = {name: row for rows in found["measures"].values() for name, row in rows.items()}
    assert set(rows["5-nn"]) == {"encodings", "embeddings"}
    assert {name for name in rows if name.startswith("fine-tuned")} == {
        "fine-tuned, 0.01 of the labels (10)",
        "fine-tuned, 0.1 of the labels (28)",
    }
    assert all(np.isfinite(value) for row in rows.values() for value in row.values())
    table = (folder / "eval.md").read_text()
    assert table.startswith("pmsn, trained on digits, measured on digits\n")
    assert all(f"| {name} |" in table for name in rows)
    assert f"| 5-nn | {rows['5-nn']['encodings']:.1%} |" in table
    assert "No last_four: " in table
    assert "No last_four: " in capsys.readouterr().out


def test_features_are_those_of_the_checkpoint(runs):
    s = subject(runs, "pmsn")
    state = torch.load(runs / "pmsn/last.ckpt", weights_only=True)["state_dict"]
    name = "target.module.0.0.weight"
    assert torch.equal(s.method.state_dict()[name], state[f"method.{name}"])
    images, labels = next(iter(s.loaders[1]))
    with torch.no_grad():
        encodings = s.encoder.eval()(images)
        embeddings = s.networks[1].eval()(encodings)
    np.testing.assert_allclose(s.features["encodings"].test, encodings, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(s.features["embeddings"].test, embeddings, rtol=1e-4, atol=1e-5)
    assert np.array_equal(s.features["embeddings"].test_labels, labels)


def test_measures_are_those_of_the_metrics(runs):
    s = subject(runs, "simclr")
    z = torch.from_numpy(s.features["embeddings"].test)
    for rows, expected in (
        (measures.uniformity(s), metrics.gaussian_uniformity(z)),
        (measures.w2(s), metrics.wasserstein_uniformity(z)),
        (measures.effective_rank(s), metrics.effective_rank(z, center=True)),
    ):
        (row,) = rows.values()
        assert row["embeddings"] == pytest.approx(expected, rel=1e-12)
    assert 0 < measures.alignment(s)["alignment"]["embeddings"] < 4
    s.source.views["strong"] = Unchanged()
    assert measures.alignment(s)["alignment"]["embeddings"] == pytest.approx(0, abs=1e-10)


class Unchanged:
    def draw(self, count, size, generator):
        return {}

    def __call__(self, images):
        return images


def test_prototypes_against_their_prior(runs, monkeypatch):
    """Embeddings that lie on two of four prototypes, three times as often on the first."""
    s = subject(runs, "pmsn")
    centres = torch.eye(16)[:4]
    rows = centres[[0, 0, 0, 1] * 5].numpy()
    labels = np.zeros(20)
    s.features = {"embeddings": Features(rows, labels, rows, labels)}
    monkeypatch.setattr(s.method, "centres", lambda: centres)
    s.method.criterion.temperature = 1e-3
    used = np.array([0.75, 0.25])
    for prior, distance in ((Prior(), 0.5), (Prior("power_law", 1.0, "sorted"), None)):
        s.prior = prior
        if distance is None:
            distance = np.abs([0, 0, *used[::-1]] - np.sort(prior.shares(4).numpy())).sum() / 2
        nearest, perplexity, variation = (r["embeddings"] for r in measures.prototypes(s).values())
        assert nearest == 0.5
        assert perplexity == pytest.approx(np.exp(-(used * np.log(used)).sum()))
        assert variation == pytest.approx(distance)


def test_clusters_are_prototypes_too(runs):
    rows = measures.prototypes(subject(runs, "pcl"))
    assert "prototypes nearest to an image, of 8" in rows


@pytest.mark.parametrize("averaging", [False, True])
def test_four_layers_of_a_transformer(averaging):
    encoder = build_encoder("vit-32/8", 1, 32).eval()
    if averaging:
        average_patches(encoder)
    images = torch.rand(3, 1, 32, 32)
    with torch.no_grad():
        found = measures.LastFour(encoder)(images)
        torch.testing.assert_close(found[:, -32:], encoder(images))
    assert found.shape == (3, 4 * 32)
    assert not torch.equal(found[:, :32], found[:, -32:])


def test_coarse_classes_from_a_file(runs, tmp_path):
    path = tmp_path / "coarse.txt"
    path.write_text("\n".join("0123456789"))
    s = subject(runs, "simclr", coarse=str(path))
    same, _ = measures.coarse(s).values()
    assert same == measures.knn(s)["5-nn"]
    path.write_text("0 1 0 1 0 1 0 1 0 1".replace(" ", "\n"))
    rows = measures.coarse(s)
    assert set(rows) == {"5-nn, 2 coarse classes", "linear, 2 coarse classes"}
    assert rows["5-nn, 2 coarse classes"]["encodings"] > same["encodings"]
    for text, message in (("0\n1", "holds 2 numbers, digits has 10"), ("a", "one integer for")):
        path.write_text(text)
        with pytest.raises(UsageError, match=message):
            measures.coarse(s)


def test_coarse_classes_of_cifar100(runs, tmp_path):
    """Its file names both labels of each image."""
    (tmp_path / "cifar-100-python").mkdir()
    fields = {"fine_labels": [*range(10), 3], "coarse_labels": [n // 5 for n in range(10)] + [0]}
    (tmp_path / "cifar-100-python/train").write_bytes(pickle.dumps(fields))
    s = subject(runs, "simclr")
    s.name, s.folder = "cifar100", str(tmp_path)
    assert "5-nn, 2 coarse classes" in measures.coarse(s)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp("photos")
    for part in ("train", "val"):
        for name, deviation in (("cat", 20), ("dog", 90)):
            (folder / part / name).mkdir(parents=True)
            for number in range(6):
                image = Image.effect_noise((40, 50), deviation)
                image.save(folder / part / name / f"{number}.png")
    return folder


def test_transfer_to_photographs(photos, tmp_path, monkeypatch):
    """Trained on one folder, measured on another."""
    folder = tmp_path / "run"
    monkeypatch.setattr(run, "finish", lambda *arguments: None)
    small = "--method simclr --image-size 32 --batch-size 4 --simclr.hidden-dim 32".split()
    images = ["--data", "imagefolder", "--data-dir", str(photos)]
    assert main([*COMMAND, *images, *small, "--run-dir", str(folder)]) == 0
    chosen = ["--metrics", "knn", "alignment", "finetune"]
    assert main(["eval", str(folder), *images, *QUICK, *chosen]) == 0
    found = json.loads((folder / "eval-imagefolder.json").read_text())
    assert set(found["measures"]) == {"knn", "alignment", "finetune"}
    assert found["measures"]["alignment"]["alignment"]["encodings"] > 0
    assert not (folder / "eval.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "name a run folder: ssl-fast eval runs/NAME"),
        ("nowhere", "nowhere is no folder"),
        (".", "holds no run of ssl-fast train"),
        ("simclr --metrics", "--metrics names none: choose among knn, weighted_knn"),
        ("simclr --metrics silhouete", "Did you mean 'silhouette'?"),
        ("simclr --metrics knn prototypes", "simclr has no prototypes"),
        ("simclr --metrics last_four", "the encoder is small-4"),
        ("simclr --metrics coarse", "digits has no coarse classes"),
        ("simclr --metrics low_shot --shares [2]", "at most 1, got 2"),
        ("simclr --neighbours 0", "neighbours must be at least 1, got 0"),
        ("simclr --coarse nowhere.txt", "--coarse nowhere.txt is no file"),
        ("simclr --data digit", "Did you mean 'digits'?"),
        ("simclr --data imagefolder --data-dir PHOTOS", "channels, imagefolder has 3"),
        ("simclr --metric knn", "Did you mean --metrics?"),
        ("unsaved", "last.ckpt is missing: ssl-fast train --resume"),
        ("spoilt", "is no checkpoint of ssl-fast train"),
        ("mixed", "(simclr on small-4): it is the checkpoint of another run"),
    ],
)
def test_what_is_refused(arguments, message, runs, photos, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    for name in ("unsaved", "spoilt", "mixed"):
        (runs / name).mkdir(exist_ok=True)
        (runs / name / "config.yaml").write_text(Path("simclr/config.yaml").read_text())
    Path("spoilt/last.ckpt").write_bytes(b"no checkpoint")
    Path("mixed/last.ckpt").write_bytes(Path("pmsn/last.ckpt").read_bytes())
    command = ["eval", *arguments.replace("PHOTOS", str(photos)).split(), *QUICK]
    if arguments.endswith("--metrics"):
        command = ["eval", "simclr", *QUICK, "--metrics"]
    assert main(command) == 2
    assert message in capsys.readouterr().err
    assert not Path("simclr/eval.json").exists()


def test_help_lists_the_metrics_and_an_example_that_runs(runs, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["eval", "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(f"  {name} " in text for name in MEASURES)
    (example,) = re.findall(r"ssl-fast (eval .* --data .*)", text)
    monkeypatch.chdir(runs.parent)
    command = example.replace("runs/resa", str(runs / "pcl")).split()
    assert main([*command, *QUICK]) == 0
    assert (runs / "pcl/eval-digits.md").exists()
