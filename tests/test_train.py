"""The driver: a run from command line to pictures, what it refuses, and what survives kill -9."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

for package in ("lightning", "torchvision", "sklearn", "matplotlib", "jsonargparse", "rich"):
    pytest.importorskip(package, reason="the driver needs pip install ssl_fast[train]")

from ssl_fast.cli import COMMANDS, main  # noqa: E402
from ssl_fast.train import data, evaluate, run  # noqa: E402
from ssl_fast.train.files import whole_file  # noqa: E402
from ssl_fast.train.methods import METHODS  # noqa: E402
from ssl_fast.train.methods.base import MomentumNetwork  # noqa: E402
from ssl_fast.train.samplers import build_order  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = (
    "train --data digits --encoder small-4 --epochs 4 --batch-size 256 --eval-every 2 "
    "--lr 0.2 --warmup-epochs 1 --threads 1 --accelerator cpu --progress off "
    "--resa.hidden-dim 32 --resa.embedding-dim 16"
).split()


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert main([*TINY, "--run-dir", str(folder)]) == 0
    return folder


@pytest.fixture
def unmeasured(monkeypatch):
    """Without tables and pictures, which take longer than these trainings."""
    monkeypatch.setattr(run, "finish", lambda *arguments: None)


def weights(folder):
    return torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]


def history(folder):
    """Rows without their times."""
    state = torch.load(folder / "last.ckpt", weights_only=True)["callbacks"]["Monitor"]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in state["rows"]]


def test_run_folder(tiny_run):
    names = {path.name for path in tiny_run.iterdir()}
    pictures = {"curves.png", "scatter.png", "assignment.png"}
    tables = {"config.yaml", "results.json", "results.md"}
    exported = {"encoder.safetensors", "encoder.pt2", "MODEL_CARD.md"}
    assert names == pictures | tables | exported | {"last.ckpt", "csv", "tensorboard"}
    modes = {path.stat().st_mode for path in tiny_run.iterdir() if path.is_file()}
    assert len(modes) == 1, "whoever may read one file may read all"
    for name in pictures:
        assert (tiny_run / name).read_bytes().startswith(b"\x89PNG")
    assert any("tfevents" in path.name for path in (tiny_run / "tensorboard").iterdir())
    assert "loss_step" in (tiny_run / "csv/version_0/metrics.csv").read_text()

    results = json.loads((tiny_run / "results.json").read_text())
    rows = {"raw pixels", "untrained encodings", "encodings", "embeddings"}
    assert set(results["scores"]) == rows
    markdown = (tiny_run / "results.md").read_text()
    assert all(f"| {row} |" in markdown for row in (*rows, "loss", "network"))
    assert results["steps"] == 20
    assert 0 < results["loss_seconds"] < results["network_seconds"] < results["seconds"]
    for row in results["scores"].values():
        assert 0 <= row["knn"] <= 1
        assert 0 <= row["probe"] <= 1


def test_twenty_steps_lower_the_loss(tiny_run):
    rows = history(tiny_run)
    assert rows[-1]["step"] == 20
    assert all(torch.isfinite(value).all() for value in weights(tiny_run).values())
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert [row["epoch"] for row in rows if "knn" in row] == [2, 4]


def test_killed_and_resumed_is_bitwise_the_same(tiny_run, tmp_path, unmeasured):
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "ssl_fast.cli", *TINY, "--run-dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (folder / "last.ckpt").exists():
        assert process.poll() is None and time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.02)
    time.sleep(0.1)  # into the next epoch
    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    assert main(["train", "--resume", str(folder)]) == 0
    expected, got = weights(tiny_run), weights(folder)
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert history(folder) == history(tiny_run)


def test_killed_before_the_first_checkpoint(tiny_run, tmp_path, unmeasured):
    folder = tmp_path / "early"
    folder.mkdir()
    (folder / "config.yaml").write_text((tiny_run / "config.yaml").read_text())
    (folder / ".last.ckpt.1.tmp").write_bytes(b"half a checkpoint")
    assert main(["train", "--resume", str(folder)]) == 0
    assert all(torch.equal(weights(folder)[k], v) for k, v in weights(tiny_run).items())


def test_resuming_a_finished_run_reports_again(tiny_run):
    before = weights(tiny_run)
    (tiny_run / "results.md").unlink()
    assert main(["train", "--resume", str(tiny_run)]) == 0
    assert (tiny_run / "results.md").exists()
    assert all(torch.equal(weights(tiny_run)[name], value) for name, value in before.items())


@pytest.mark.distributed
def test_two_processes(tmp_path):
    folder = tmp_path / "two"
    command = [sys.executable, "-m", "ssl_fast.cli", *TINY, "--devices", "2", "--epochs", "2"]
    subprocess.run([*command, "--run-dir", str(folder)], check=True, timeout=300)
    rows = history(folder)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert (folder / "scatter.png").exists()


def test_a_rank_sees_its_share_of_the_global_batch():
    source = data.open_data("digits", seed=3)

    def first_batch(rank, world):
        order = build_order("epoch", source.pretrain, batch_size=8, seed=3)
        images = data.ViewData(source, ("weak", "strong"), order, workers=0)
        images.trainer = SimpleNamespace(world_size=world, global_rank=rank, global_step=0)
        return images.on_after_batch_transfer(next(iter(images.train_dataloader())), 0)

    whole = first_batch(0, 1)
    for rank in (0, 1):
        views, index = first_batch(rank, 2)
        assert torch.equal(index, whole[1][rank::2])
        for part, view in zip(views, whole[0], strict=True):
            assert torch.equal(part, view[rank::2])


def test_digits_are_split_by_digit_and_drawn_by_seed():
    first, again, other = (data.open_data("digits", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.train.tensors[0], again.train.tensors[0])
    assert not torch.equal(first.train.tensors[0], other.train.tensors[0])
    assert (len(first.train), len(first.test)) == (1437, 360)
    assert torch.bincount(first.test.tensors[1]).min() >= 34
    assert first.train.tensors[0].shape[1:] == (1, 32, 32)


def test_photographs_are_augmented_by_draw_and_index(tmp_path):
    from PIL import Image

    for folder in ("train/cat", "train/dog", "val/cat", "val/dog"):
        (tmp_path / folder).mkdir(parents=True)
        Image.effect_noise((40, 50), 60).save(tmp_path / folder / "001.png")
    source = data.open_data("imagefolder", seed=0, data_dir=str(tmp_path), image_size=32)
    views = data.Views(source.pretrain, [source.views["weak"], source.views["strong"]], seed=0)
    state = torch.get_rng_state()
    (first, index, draw), (again, *_), (later, *_) = views[1, 0], views[1, 0], views[2, 0]
    assert (index, draw) == (0, 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert [view.shape for view in first] == [(3, 32, 32)] * 2
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], later[0])


def test_local_views_show_a_part_at_half_the_size():
    source = data.open_data("digits", seed=0)
    images, view = source.train.tensors[0][:256], source.views["local"]
    out = view(images, **view.draw(256, 32, torch.Generator().manual_seed(0)))
    assert out.shape == (256, 1, 16, 16)
    lit = (out > 0.3).float().mean((1, 2, 3))
    assert 0.1 < lit.median() < 0.6


@pytest.mark.parametrize("name", ["weak", "strong"])
def test_views_keep_most_of_the_digit(name):
    source = data.open_data("digits", seed=0)
    images, view = source.train.tensors[0][:256], source.views[name]
    out = view(images, **view.draw(256, 32, torch.Generator().manual_seed(0)))
    assert out.shape == images.shape
    assert torch.isfinite(out).all()
    kept = out.clamp(min=0).sum((1, 2, 3)) / images.sum((1, 2, 3))
    assert kept.median() > 0.7
    assert not torch.equal(out, images)


def test_momentum_rises_along_a_cosine():
    online = torch.nn.Linear(2, 2)
    average = MomentumNetwork(online, start=0.5)
    average.update(online, 0.0)
    before = average.module.weight.clone()
    with torch.no_grad():
        online.weight.add_(1.0)
    for progress, step in ((0.0, 0.5), (0.5, 0.25), (1.0, 0.0)):
        with torch.no_grad():
            average.module.weight.copy_(before)
        average.update(online, progress)
        torch.testing.assert_close(average.module.weight, before + step)


def test_evaluation_restores_modes_and_statistics():
    source = data.open_data("digits", seed=0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(1024))
    network[0].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    loaders = [data.plain_loader(source, part, limit=64) for part in ("train", "test")]
    features = evaluate.extract([network], *loaders, torch.device("cpu"))[0]
    assert features.train.shape == (64, 1024)
    assert [module.training for module in network] == [False, True]
    assert all(torch.equal(network.state_dict()[k], v) for k, v in before.items())


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "table.md"
    path.write_text("old")
    with pytest.raises(RuntimeError), whole_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--method resaa", "Did you mean 'resa'?"),
        ("--data digit", "Did you mean 'digits'?"),
        ("--data cifar10 --data-dir nowhere", "nowhere/cifar-10-batches-py/data_batch_1"),
        ("--data cifar100 --data-dir nowhere", "nowhere/cifar-100-python/train"),
        ("--data stl10 --data-dir nowhere", "nowhere/stl10_binary/train_X.bin"),
        ("--data imagefolder --data-dir nowhere", "train/cat/001.jpg"),
        (
            "--batch-size 2000",
            "the 1437 training images of digits: try --batch-size 1024",
        ),
        ("--batch-size 3 --devices 2", "multiple of 2"),
        ("--encoder resnet1", "resnet18"),
        ("--epoch 3", "Did you mean --epochs?"),
        ("--resa.temprature 1", "Did you mean --resa.temperature?"),
        ("--resa.temperature -1", "--resa: temperature must be finite and > 0, got -1"),
        ("--resa.iterations 0", "--resa: iterations must be an integer >= 1, got 0"),
        ("--epochs 0", "epochs must be positive"),
        ("--epochs many", "many"),
        ("--config nowhere.yaml", "no configuration file nowhere.yaml"),
        ("--resume nowhere", "nowhere holds no config.yaml"),
        ("--resume nowhere --epochs 3", "give it alone"),
    ],
)
def test_mistakes_are_explained(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments.split()]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert not list(tmp_path.iterdir()), "a refused run leaves no folder behind"


def test_a_used_folder_is_refused(tiny_run, capsys):
    assert main([*TINY, "--run-dir", str(tiny_run)]) == 2
    assert f"ssl-fast train --resume {tiny_run}" in capsys.readouterr().err
    file = tiny_run / "config.yaml"
    assert main([*TINY, "--run-dir", str(file)]) == 2
    assert f"{file} is not an empty folder" in capsys.readouterr().err


def test_help_names_every_option_with_its_default(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--data", "digits", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    assert "Examples: ssl-fast train --method resa --data digits" in text
    for option in ("--batch-size", "--resa.temperature", "--resume", "--precision"):
        assert option in text
    assert "default: small-16" in text, "the preset's default, not the class's"


def test_configuration_file_and_overrides(tiny_run, capsys):
    with pytest.raises(SystemExit):
        main(["train", "--config", str(tiny_run / "config.yaml"), "--lr", "0.5", "--print-config"])
    text = capsys.readouterr().out
    assert "lr: 0.5" in text
    assert "encoder: small-4" in text
    assert "  hidden_dim: 32" in text


def help_of(command, capsys):
    with contextlib.suppress(SystemExit):  # argparse's; ours returns
        main([command, "--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"experiment"}))
def test_help_has_an_example_of_options_that_exist(command, capsys):
    """The studies' examples stand in the documentation, whose options test_docs.py looks up."""
    text, example = re.split("[Ee]xamples?:", help_of(command, capsys))
    assert f"ssl-fast {command}" in example
    if command == "zoo":
        text += help_of("train", capsys)
    assert all(f"{option} " in text for option in re.findall(r"--[\w.-]+", example))


def test_commands(capsys):
    assert main([]) == 0
    assert "train" in capsys.readouterr().out
    assert main(["tran"]) == 2
    assert "Did you mean 'train'?" in capsys.readouterr().err
    assert main(["methods"]) == 0
    listing = capsys.readouterr().out
    assert all(name in listing for name in METHODS)
