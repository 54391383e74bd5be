"""Photographs on disk: ImageFolder's and iNaturalist's layouts, and files that are damaged."""

import json

import pytest
import torch

for package in ("lightning", "torchvision", "sklearn", "jsonargparse"):
    pytest.importorskip(package, reason="the driver needs pip install ssl_fast[train]")

from PIL import Image  # noqa: E402

from ssl_fast.cli import main  # noqa: E402
from ssl_fast.train import callbacks, data, run  # noqa: E402
from ssl_fast.train.config import TrainOptions  # noqa: E402
from ssl_fast.train.errors import UsageError  # noqa: E402
from ssl_fast.train.labels import labels_of  # noqa: E402

SPECIES = [
    "00000_Animalia_Chordata_Aves_Passeriformes_Paridae_Parus_major",
    "00001_Plantae_Tracheophyta_Magnoliopsida_Fagales_Fagaceae_Quercus_robur",
]


def write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((40, 50), 60).save(path)


def opened(name, folder):
    return data.open_data(name, seed=0, data_dir=str(folder), image_size=32)


def files(images):
    """Names of all images of iNaturalist, in order."""
    if hasattr(images, "indices"):
        every = files(images.dataset)
        return [every[i] for i in images.indices]
    return [f"{images.all_categories[label]}/{name}" for label, name in images.index]


@pytest.mark.parametrize("train", ["2021_train", "2021_train_mini"])
def test_inaturalist_2021(train, tmp_path):
    for species in SPECIES:
        for name in ("b", "a", "c"):
            write(tmp_path / train / species / f"{name}.jpg")
        write(tmp_path / "2021_valid" / species / "d.jpg")
    source = opened("inaturalist", tmp_path)
    assert source.train is source.pretrain
    assert labels_of(source.pretrain).tolist() == [0, 0, 0, 1, 1, 1]
    assert labels_of(source.test).tolist() == [0, 1]
    assert [name[-5:] for name in files(source.train)] == ["a.jpg", "b.jpg", "c.jpg"] * 2
    images, labels = next(iter(data.plain_loader(source, "train")))
    assert images.shape == (6, 3, 32, 32) and labels.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("year", ["2018", "2019"])
def test_inaturalist_with_lists(year, tmp_path):
    """One folder for both parts; the competition's lists tell them apart."""
    parts = {"train": ["Aves/0/a.jpg", "Fungi/1/b.jpg", "Fungi/1/c.jpg"], "val": ["Aves/0/d.jpg"]}
    for part, names in parts.items():
        for name in names:
            write(tmp_path / year / name)
        listed = {"images": [{"file_name": f"train_val{year}/{name}"} for name in names]}
        (tmp_path / f"{part}{year}.json").write_text(json.dumps(listed))
    source = opened("inaturalist", tmp_path)
    assert (files(source.train), files(source.test)) == (parts["train"], parts["val"])
    assert labels_of(source.train).tolist() == [0, 1, 1]
    assert source.test[0][1] == 0

    (tmp_path / year / "Fungi/1/b.jpg").unlink()
    with pytest.raises(UsageError, match=r"lists 3 images; 1 are missing in .*Fungi/1/b.jpg"):
        opened("inaturalist", tmp_path)


def test_inaturalist_as_image_folders(tmp_path):
    for species in ("Parus major", "Quercus robur"):
        write(tmp_path / "train" / species / "1.jpg")
        write(tmp_path / "val" / species / "2.jpg")
    source = opened("inaturalist", tmp_path)
    assert source.train.classes == ["Parus major", "Quercus robur"]
    assert len(source.train) == len(source.test) == 2


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ([], ["/train\n", "/val\n", "2021_train_mini", "train2018.json"]),
        ([f"2021_train/{SPECIES[0]}/a.jpg"], ["/2021_valid\n"]),
        (["2018/Aves/0/a.jpg"], ["/train2018.json\n", "/val2018.json\n"]),
    ],
)
def test_missing_files_are_named(there, expected, tmp_path):
    for name in there:
        write(tmp_path / name)
    with pytest.raises(UsageError) as error:
        opened("inaturalist", tmp_path)
    assert all(name in str(error.value) for name in expected), str(error.value)


def test_folders_that_torchvision_refuses(tmp_path):
    for part in ("2021_train", "2021_valid"):
        write(tmp_path / part / "birds" / "a.jpg")
    with pytest.raises(UsageError, match=r"inaturalist in .* cannot be used: Unexpected category"):
        opened("inaturalist", tmp_path)
    for part in ("train", "val"):
        (tmp_path / part / "cat").mkdir(parents=True)
    with pytest.raises(UsageError, match="cannot be used: Found no valid file for the classes cat"):
        opened("imagefolder", tmp_path)


def test_parts_must_have_the_same_classes(tmp_path):
    for name in ("train/cat/1.png", "train/dog/1.png", "val/dog/1.png"):
        write(tmp_path / name)
    with pytest.raises(UsageError, match=r"must have the same classes; .* one part only: cat$"):
        opened("imagefolder", tmp_path)


@pytest.fixture
def damaged(tmp_path):
    """Four images of each class, one of them cut short and one not an image at all."""
    for i in range(4):
        for kind in ("cat", "dog"):
            for part in ("train", "val"):
                write(tmp_path / f"{part}/{kind}/{i}.png")
    cut = tmp_path / "train/cat/2.png"
    cut.write_bytes(cut.read_bytes()[:300])
    (tmp_path / "val/dog/0.png").write_text("no image")
    return tmp_path


TINY = (
    "train --method simclr --data imagefolder --image-size 32 --encoder small-4 --epochs 1 "
    "--batch-size 6 --warmup-epochs 0 --progress off --threads 1 --accelerator cpu"
).split()


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_corrupt_image_is_named(workers, damaged, tmp_path, capsys):
    folder = tmp_path / "run"
    command = [*TINY, "--data-dir", str(damaged), "--run-dir", str(folder), "--workers", workers]
    assert main([*command, "--batch-size", "8"]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"ssl-fast train: corrupt image {damaged}/train/cat/2.png (")
    assert f"ssl-fast train --resume {folder}. Or start anew with --corrupt skip." in message
    assert len(message.splitlines()) == 1


def test_corrupt_images_are_skipped(damaged, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "finish", lambda *arguments: None)
    monkeypatch.setattr(callbacks.Monitor, "_accuracy", lambda *arguments: 0.0)
    folder = tmp_path / "run"
    command = [*TINY, "--data-dir", str(damaged), "--run-dir", str(folder), "--workers", "1"]
    assert main([*command, "--corrupt", "skip"]) == 0
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(" (")[0] for line in told if "skipped" in line] == [
        f"skipped: corrupt image {damaged}/train/cat/2.png",
        f"skipped: corrupt image {damaged}/val/dog/0.png",
    ]
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 1


def test_what_is_skipped_is_out_of_every_part(damaged):
    options = TrainOptions(data="imagefolder", data_dir=str(damaged), workers=0, corrupt="skip")
    source, again = run.open_source(options), run.open_source(options)
    assert source.train is source.pretrain
    assert labels_of(source.train).tolist() == [0] * 3 + [1] * 4
    assert labels_of(source.test).tolist() == [0] * 4 + [1] * 3
    assert source.train.indices == again.train.indices == [0, 1, 3, 4, 5, 6, 7]


def test_nothing_readable(damaged):
    for path in damaged.glob("train/*/*.png"):
        path.write_text("no image")
    options = TrainOptions(data="imagefolder", data_dir=str(damaged), workers=0, corrupt="skip")
    with pytest.raises(UsageError, match=r"none of 8 images can be read: corrupt image .*cat/0"):
        run.open_source(options)
