"""`ssl-fast experiment`: run folders, refusals, and the papers' claims that need no training."""

import csv
import json

import pytest

for package in ("lightning", "matplotlib", "jsonargparse", "rich"):
    pytest.importorskip(package, reason="experiments need pip install ssl_fast[train]")

from ssl_fast.bench import machine  # noqa: E402

from ssl_fast.cli import main  # noqa: E402
from ssl_fast.experiments import EXPERIMENTS, frame, uniformity_metrics  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "uniformity"
    arguments = "--rows 400 --width 32 --copies 3 --steps 5 --run-dir"
    assert main(["experiment", "uniformity-metrics", *arguments.split(), str(path)]) == 0
    return path


def test_run_folder(folder):
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "config.yaml", "results.csv", "results.json", "results.md", "uniformity.png"
    }  # fmt: skip
    assert (folder / "uniformity.png").read_bytes().startswith(b"\x89PNG")
    results = json.loads((folder / "results.json").read_text())
    with (folder / "results.csv").open() as file:
        head, *rows = csv.reader(file)
    assert head == results["columns"] == ["change", "amount", "-W2", "-L_U"]
    assert [[float(c) for c in row[1:]] for row in rows] == [r[1:] for r in results["rows"]]
    assert results["options"]["rows"] == 400 and results["seconds"] > 0
    stamp = machine.sentence(results)
    text = (folder / "results.md").read_text()
    assert text.count("- held: ") == len(results["claims"]) and "](uniformity.png)" in text
    assert stamp in text


def test_the_papers_claims_hold(folder):
    """Permutation, cloning of instances and features, appended features, collapse."""
    claims = json.loads((folder / "results.json").read_text())["claims"]
    assert len(claims) == 11
    assert all(claims.values()), [claim for claim, held in claims.items() if not held]


def test_a_claim_can_fail():
    """A metric that ignores everything breaks every claim about a fall."""
    options = uniformity_metrics.Options(rows=8, width=8, copies=2, steps=3)
    rows = [(s.name, a, 0.0, 0.0) for s in uniformity_metrics.studies(options) for a in s.amounts]
    rows[-1] = (*rows[-1][:2], -1.0, -1.0)
    found = uniformity_metrics.claims(rows)
    assert not found["-W2 falls when features are cloned"]
    assert found["-W2 does not change when instances are cloned"]


def test_a_new_run_needs_an_empty_folder(folder, capsys):
    assert main(["experiment", "uniformity-metrics", "--run-dir", str(folder)]) == 2
    assert "not an empty folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["uniformity-metric"], "Did you mean 'uniformity-metrics'"),
        (["uniformity-metrics", "--row", "4"], "Did you mean --rows"),
        (["uniformity-metrics", "--width", "2"], "width must be at least 8, got 2"),
    ],
)
def test_mistakes_are_explained(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["experiment", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_help_names_every_experiment(capsys):
    assert main(["experiment", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text and summary in text for name, (_, summary) in EXPERIMENTS.items())
    with pytest.raises(SystemExit):
        main(["experiment", "uniformity-metrics", "--help"])
    text = capsys.readouterr().out
    assert "--rows" in text and "ssl-fast experiment uniformity-metrics" in text


def test_progress_is_a_line_each(capsys):
    assert list(frame.track("ab", lambda item: f"item {item}")) == ["a", "b"]
    assert capsys.readouterr().out == "1/2  item a\n2/2  item b\n"
