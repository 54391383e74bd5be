"""The exported encoder: its model card's own lines, without this package, give its features."""

import re
import subprocess
import sys

import pytest
import torch

for package in ("lightning", "torchvision", "sklearn", "timm", "safetensors", "jsonargparse"):
    pytest.importorskip(package, reason="the driver needs pip install ssl_fast[train]")

from ssl_fast.train import data, export  # noqa: E402
from ssl_fast.train.config import TrainOptions  # noqa: E402
from ssl_fast.train.models import average_patches, build_encoder  # noqa: E402

MEASURES = {"knn": 0.5, "probe": 0.6, "ari": 0.2, "silhouette": 0.1}
BLOCK = "import sys; sys.modules['ssl_fast'] = None\n"
ENCODERS = {  # name: side of the images
    "small-4": 32,
    "resnet18": 32,  # the stem for small images
    "resnet18-pad2": 32,
    "resnet34": 96,  # the stem for large ones
    "vit-32/8": 32,
}
AVERAGING = "vit-32/8"  # the mean of its patches, as MAE's and data2vec's encoders


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Encoders with moved statistics, a folder each."""
    found = {}
    digits = data.open_data("digits", seed=0)
    for number, (name, size) in enumerate(ENCODERS.items()):
        folder = tmp_path_factory.mktemp("export") / str(number)
        folder.mkdir()
        (folder / "config.yaml").write_text("method: resa\n")
        source = digits._replace(image_size=size)
        torch.manual_seed(number)
        encoder = build_encoder(name, 1, size)
        if name == AVERAGING:
            average_patches(encoder)
        encoder(torch.rand(16, 1, size, size))
        options = TrainOptions(encoder=name, epochs=3)
        export.write(folder, encoder, options, source, {"encodings": MEASURES})
        found[name] = folder, encoder.eval()
    return found


def test_the_cards_lines_run_without_this_package(exported):
    """All cards' snippets in one process, on images instead of zeros."""
    code, expected = BLOCK + "import os, torch\nfound = []\n", []
    for name, (folder, encoder) in exported.items():
        snippets = re.findall(r"```python\n(.*?)```", (folder / "MODEL_CARD.md").read_text(), re.S)
        assert len(snippets) == (1 if name.startswith("small") else 2)
        for snippet in snippets:
            lines = snippet.replace("torch.zeros(", "torch.linspace(0, 1, 8 * SIDE**2).view(")
            assert lines != snippet
            code += f"os.chdir({str(folder)!r})\nSIDE = {ENCODERS[name]}\n{lines}"
            code += "found.append(encodings.detach())\n"
            side = ENCODERS[name]
            with torch.no_grad():
                images = torch.linspace(0, 1, 8 * side**2).view(8, 1, side, side)
                expected.append(encoder(images))
    folder = next(iter(exported.values()))[0]
    code += f"torch.save(found, {str(folder / 'found.pt')!r})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = torch.load(folder / "found.pt", weights_only=True)
    assert len(found) == 2 * len(ENCODERS) - 1
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted)
        assert got.std(0).max() > 0


def test_the_card_tells_method_data_measures_and_configuration(exported):
    card = (exported["resnet18"][0] / "MODEL_CARD.md").read_text()
    for part in (
        "# resa on digits",
        "Clustering Properties of Self-Supervised Learning",
        "3 epochs, seed 0",
        "1437 images",
        "(N, 1, 32, 32), values from 0 to 1",
        "encodings (N, 512)",
        "| encodings | 50.0% | 60.0% | 0.200 | 0.100 |",
        "```yaml\nmethod: resa\n```",
    ):
        assert part in card


def test_weights_say_what_they_are(exported):
    from safetensors import safe_open

    with safe_open(exported["vit-32/8"][0] / "encoder.safetensors", "pt") as file:
        assert file.metadata() == {"method": "resa", "data": "digits", "encoder": "vit-32/8"}


def test_exporting_leaves_the_encoder_as_it_was(tmp_path):
    (tmp_path / "config.yaml").write_text("method: resa\n")
    encoder = build_encoder("small-4", 1, 32).train()
    source = data.open_data("digits", seed=0)
    export.write(
        tmp_path, encoder, TrainOptions(encoder="small-4"), source, {"encodings": MEASURES}
    )
    assert encoder.training
    assert {p.name for p in tmp_path.iterdir()} == {
        "config.yaml",
        "encoder.safetensors",
        "encoder.pt2",
        "MODEL_CARD.md",
    }
