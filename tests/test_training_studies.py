"""Studies that train with the driver's presets: tiny runs, and what they refuse."""

import json

import numpy as np
import pytest

for package in ("lightning", "torchvision", "sklearn", "matplotlib", "timm", "jsonargparse"):
    pytest.importorskip(package, reason="experiments need pip install ssl_fast[train]")

from ssl_fast.cli import main  # noqa: E402
from ssl_fast.experiments import (  # noqa: E402
    class_imbalance,
    clustering_properties,
    long_tail,
    resa_ablations,
)
from ssl_fast.experiments.training import digits_job  # noqa: E402
from ssl_fast.train.labels import labels_of  # noqa: E402
from ssl_fast.train.run import build_method  # noqa: E402


def run(folder, name, *arguments):
    assert main(["experiment", name, *arguments, "--run-dir", str(folder)]) == 0
    return json.loads((folder / "results.json").read_text())


def test_clustering_properties(tmp_path):
    found = run(tmp_path, "clustering-properties", "--methods=[simclr]", "--epochs=1", "--every=1")
    assert [row[:4] for row in found["rows"]] == [
        ["simclr", 0, epoch, stage] for epoch in (0, 1) for stage in ("encodings", "embeddings")
    ]
    assert found["rows"][0][4:] != found["rows"][2][4:], "an epoch changes the encodings"
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert len(found["claims"]) == 3


def test_a_claim_on_encodings_follows_the_numbers():
    rows = [
        ("m", 0, 9, stage, ari, 0.1, std, 0.5, 0.5)
        for stage, ari, std in (("encodings", 0.6, 0.2), ("embeddings", 0.4, 0.1))
    ]
    assert clustering_properties.claims(["m"], rows) == {
        "m: encodings have the higher ARI": True,
        "m: encodings have the steadier silhouette": False,
        "m: encodings are separated better by a line": False,
    }


@pytest.mark.slow
def test_resa_ablations(tmp_path):
    found = run(tmp_path, "resa-ablations", "--parts=[assignment]", "--epochs=1")
    assert [row[1] for row in found["rows"]] == ["encodings", "embeddings"]
    assert found["rows"][0][2:] != found["rows"][1][2:], "the option reaches the loss"
    assert [epoch for epoch, _ in found["diagonal"]] == [0, 1]
    assert (tmp_path / "early_assignment.png").read_bytes().startswith(b"\x89PNG")


def test_claims_of_the_ablations_follow_the_numbers():
    means = {"encodings": {"knn": 0.5}, "embeddings": {"knn": 0.6}}
    early = [(0, np.eye(3)), (1, np.full((3, 3), 1 / 3))]
    options = resa_ablations.Options(parts=["assignment"])
    assert list(resa_ablations.claims(options, means, early).values()) == [False, False, False]


@pytest.mark.slow
def test_uniformity_training(tmp_path):
    found = run(tmp_path, "uniformity-training", "--methods=[moco_v2]", "--epochs=1", "--seeds=1")
    without, with_w2 = found["rows"]
    assert without[:3] == ["moco_v2", "without", 0] and with_w2[1] == "with W2"
    assert without[3:] != with_w2[3:], "the term reaches the loss"
    assert (tmp_path / "spectrum.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_class_imbalance(tmp_path):
    arguments = ("--methods=[simclr]", "--epochs=1", "--seeds=1")
    ((method, *numbers),) = run(tmp_path, "class-imbalance", *arguments)["rows"]
    assert method == "simclr"
    balanced, imbalanced, drop, deviation = numbers[:4]
    assert drop == pytest.approx(100 * (balanced - imbalanced)) and deviation == 0
    assert numbers[:2] != numbers[2:4] and drop != 0, "the sampler reaches the training"
    assert (tmp_path / "drops.png").read_bytes().startswith(b"\x89PNG")


def test_claims_on_drops_follow_the_numbers():
    linear = {"simclr": (0.6, 0.5), "vicreg": (0.5, 0.6), "mae": (0.4, 0.38)}
    found = {
        (method, sampler): [(0.0, value)]
        for method, values in linear.items()
        for sampler, value in zip(class_imbalance.SAMPLERS, values, strict=True)
    }
    assert list(class_imbalance.claims(["simclr", "mae"], found).values()) == [True, True]
    assert list(class_imbalance.claims(list(linear), found).values()) == [True, False, False]


@pytest.mark.slow
def test_long_tail(tmp_path):
    found = run(tmp_path, "long-tail", "--methods=[]", "--steps=2", "--seeds=1")
    assert [row[0] for row in found["rows"]] == ["long-tailed"] * 4 + ["balanced"] * 4
    assert len({tuple(row[2:]) for row in found["rows"]}) > 4, "set and prior reach the training"
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_both_sets_are_trained_on_for_as_many_steps():
    options = long_tail.Options(steps=100)
    for kind in long_tail.SETS:
        job, source = long_tail.job_of(options, options.variants()[0], kind, 0)
        steps = job.options.epochs * (len(source.pretrain) // job.options.batch_size)
        assert 100 <= steps < 100 + len(source.pretrain) // job.options.batch_size


def test_priors_differ_in_nothing_else():
    """The paper's temperatures and weight reach the loss; no Sinkhorn draws to another prior."""
    options, wanted = long_tail.Options(methods=[], imbalance_factor=10), {}
    for variant in options.variants():
        job, source = long_tail.job_of(options, variant, "long-tailed", 0)
        loss = build_method(job.options, job.own, source).criterion
        assert (loss.temperature, loss.sharpening, loss.prior_weight) == (0.1, 0.25, 5.0)
        assert loss.sinkhorn_iterations == 0
        given = loss.prior.given
        wanted[variant.name] = job.options.sampler, given if given is None else given.tolist()
    rank, counts = np.arange(1, 11), np.bincount(labels_of(source.pretrain))
    assert wanted["pmsn, uniform prior"] == ("epoch", None)
    assert wanted["pmsn, inverse square root"] == ("inverse_sqrt", None)
    for name, shares in (("power law", rank**-0.25), ("class", counts)):
        sampler, given = wanted[f"pmsn, {name} prior"]
        assert sampler == "epoch" and given == pytest.approx(shares / shares.sum())


def test_shorter_trainings_keep_the_share_of_warm_up():
    assert digits_job("simclr", 0).options.epochs == 60
    short = digits_job("simclr", 3, epochs=12, arguments=["--lr", "0.5"]).options
    assert (short.seed, short.epochs, short.warmup_epochs, short.lr) == (3, 12, 1.0, 0.5)


@pytest.mark.parametrize(
    ("name", "argument", "message"),
    [
        ("clustering-properties", "--methods=[simclrr]", "simclr"),
        ("resa-ablations", "--parts=[tempo]", "parts are some of assignment"),
        ("resa-ablations", "--epochs=0", "epochs and seeds must be at least 1"),
        ("class-imbalance", "--classes-per-batch=11", "classes_per_batch of 1 to 10"),
        ("class-imbalance", "--methods=[maee]", "mae"),
        ("long-tail", "--steps=0", "seeds and steps must be at least 1"),
        ("uniformity-training", "--methods=[swav]", "methods are some of moco_v2"),
    ],
)
def test_mistakes_are_explained(name, argument, message, capsys, tmp_path):
    assert main(["experiment", name, argument, "--run-dir", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
