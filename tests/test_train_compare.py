"""`ssl-fast compare` and `ssl-fast plot`: their table, their pictures, what they refuse."""

import json
import re
import shlex
import shutil

import pytest
import yaml

for package in ("lightning", "torchvision", "sklearn", "matplotlib", "jsonargparse", "rich"):
    pytest.importorskip(package, reason="the driver needs pip install ssl_fast[train]")

from ssl_fast.cli import main  # noqa: E402
from ssl_fast.train import compare  # noqa: E402
from ssl_fast.train.saved import read_runs  # noqa: E402

KNN = {"simclr": 0.55, "resa": 0.61}


def fake_run(folder, method, *, data="digits", seed=0):
    """A run folder's two files, as the driver writes them."""
    start = {"knn": 0.3, "probe": 0.4, "ari": 0.1, "silhouette": 0.01}
    scores = {
        "raw pixels": start | {"knn": 0.52},
        "untrained encodings": start,
        "encodings": start | {"knn": KNN[method]},
        "embeddings": start,
    }
    history = [
        {"epoch": n, "step": 5 * n, "loss": 3.0 / n, "lr": 0.1, "seconds": 2.0 * n}
        | ({"knn": 0.1 * n} if n % 2 == 0 else {})
        for n in (1, 2, 3, 4)
    ]
    facts = {"method": method, "data": data, "seed": seed, "seconds": 8.0}
    folder.mkdir(parents=True)
    config = {"method": method, "data": data, "seed": seed, "epochs": 4, "encoder": "small-4"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    results = facts | {"scores": scores, "history": history}
    (folder / "results.json").write_text(json.dumps(results))


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for method in KNN:
        fake_run(tmp_path / "runs" / method, method)
    return tmp_path / "runs"


def test_the_table(runs):
    assert main(["compare", "runs/simclr", "runs/resa"]) == 0
    lines = (runs.parent / "comparison.md").read_text().splitlines()
    assert lines[0] == "Encodings of digits: 2 runs"
    assert lines[2] == (
        "| run | method | seed | epochs | 5-nn | linear probe | ARI | silhouette | seconds |"
    )
    assert lines[4:] == [
        "| simclr | simclr | 0 | 4 | 55.0% | 40.0% | 0.100 | 0.010 | 8 |",
        "| resa | resa | 0 | 4 | 61.0% | 40.0% | 0.100 | 0.010 | 8 |",
        "| raw pixels | - | 0 | - | 52.0% | 40.0% | 0.100 | 0.010 | - |",
        "| untrained small-4 | - | 0 | - | 30.0% | 40.0% | 0.100 | 0.010 | - |",
    ]


def test_baselines_of_several_seeds_and_names_that_repeat(runs):
    fake_run(runs.parent / "other" / "resa", "resa", seed=3)
    found = read_runs(["runs/resa", "other/resa"], "compare")
    assert list(found) == ["runs/resa", "other/resa"]
    assert set(compare.baselines(found)) == {
        f"{name}, seed {seed}" for name in ("raw pixels", "untrained small-4") for seed in (0, 3)
    }


@pytest.mark.parametrize("text", [compare.COMPARE, compare.PLOT], ids=["compare", "plot"])
def test_the_example_in_the_help_runs(text, runs, capsys):
    (example,) = re.findall(r"ssl-fast .*", text)
    command = shlex.split(example)[1:]
    assert main(command) == 0
    written = re.search("written: (.*)", capsys.readouterr().out)[1].split(", ")
    assert (runs.parent / written[-1]).read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit) as stop:
        main([command[0], "--help"])
    assert stop.value.code == 0
    assert example in capsys.readouterr().out


def test_bars_and_curves_are_the_runs_numbers(runs, monkeypatch):
    figures = []
    monkeypatch.setattr(compare, "save", lambda figure, path: figures.append(figure))
    found = read_runs(["runs/simclr", "runs/resa"], "plot")
    compare.draw(runs / "bars.png", found)
    compare.draw_curves(runs / "curves.png", found)
    bars, curves = figures
    assert [bar.get_width() for bar in bars.axes[0].patches] == [0.55, 0.61]
    assert [bar.get_width() for bar in bars.axes[-1].patches] == [8.0, 8.0]
    assert [line.get_xdata()[0] for line in bars.axes[0].lines] == pytest.approx([0.52, 0.3])
    loss, accuracy, by_time = curves.axes
    assert loss.lines[0].get_ydata()[[0, -1]].tolist() == [1.0, 0.0], "of two methods: scaled"
    assert list(accuracy.lines[1].get_xdata()) == [2, 4]
    assert list(by_time.lines[1].get_xdata()) == [4.0, 8.0]
    compare.draw_curves(runs / "curves.png", {"resa": found["resa"]})
    assert figures[-1].axes[0].lines[0].get_ydata()[0] == 3.0, "of one method: as it is"


@pytest.mark.parametrize("command", ["compare", "plot"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "name one or more run folders"),
        ("nowhere", "nowhere is no folder"),
        ("runs", "holds no run of ssl-fast train"),
        ("runs/resa half", "half is not finished: ssl-fast train --resume half"),
        ("runs/resa stl", "runs/resa was trained on digits, stl on stl10"),
        ("runs/resa --output x", "Did you mean --out?"),
    ],
)
def test_what_is_refused(command, arguments, message, runs, capsys):
    shutil.copytree(runs / "resa", runs.parent / "half")
    (runs.parent / "half/results.json").unlink()
    fake_run(runs.parent / "stl", "resa", data="stl10")
    before = {path.name for path in runs.parent.iterdir()}
    assert main([command, *arguments.split()]) == 2
    assert message in capsys.readouterr().err
    assert {path.name for path in runs.parent.iterdir()} == before, "nothing is written"


def test_a_picture_that_fails_leaves_the_old_one(runs, monkeypatch):
    path = runs / "curves.png"
    path.write_bytes(b"old")

    def half(figure, target, **options):
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(compare.Figure, "savefig", half)
    with pytest.raises(OSError, match="disk full"):
        compare.draw_curves(path, read_runs(["runs/resa"], "plot"))
    assert path.read_bytes() == b"old"
    assert {p.name for p in runs.iterdir()} == {"simclr", "resa", "curves.png"}
