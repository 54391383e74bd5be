"""`ssl-fast zoo`: two methods, one epoch, three hundred digits."""

import csv
import json
import re
import shlex

import pytest
from torch.utils.data import TensorDataset

for package in ("lightning", "torchvision", "sklearn", "timm", "jsonargparse", "rich"):
    pytest.importorskip(package, reason="the driver needs pip install ssl_fast[train]")

from ssl_fast.bench import machine  # noqa: E402

from ssl_fast.cli import main  # noqa: E402
from ssl_fast.train import data, export, report, zoo  # noqa: E402
from ssl_fast.train.errors import UsageError  # noqa: E402
from ssl_fast.train.methods import METHODS, SimCLR, VICReg  # noqa: E402
from ssl_fast.train.tables import Points, Table  # noqa: E402

COMMAND = (
    "zoo --data digits --methods simclr vicreg --epochs 1 --encoder small-4 --progress off "
    "--accelerator cpu"
).split()


@pytest.fixture(scope="module", autouse=True)
def few_digits(one_thread):
    """Two hundred for training, a hundred for testing."""

    def digits(seed, folder, size, augmentation):
        source = data.digits(seed)
        train = TensorDataset(*source.train[:200])
        return source._replace(pretrain=train, train=train, test=TensorDataset(*source.test[:100]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data.DATA, "digits", digits)
        for module, name in (
            (report, "draw_scatter"),
            (report, "draw_assignment"),
            (export, "write"),
        ):
            patch.setattr(module, name, lambda *arguments, **options: None)  # tested elsewhere
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The first method finished, the second one interrupted, and then the same command again."""
    folder = tmp_path_factory.mktemp("zoo") / "out"
    command = [*COMMAND, "--out", str(folder)]

    def stop(*arguments):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VICReg, "before_update", stop)
        assert main(command) == 2
    assert not (folder / "zoo.md").exists()
    assert (folder / "vicreg/config.yaml").exists()
    before = (folder / "simclr/results.json").stat().st_mtime_ns
    assert main(command) == 0
    assert (folder / "simclr/results.json").stat().st_mtime_ns == before
    return folder


def results(folder):
    return {
        name: json.loads((folder / name / "results.json").read_text())
        for name in ("simclr", "vicreg")
    }


def test_the_tables_hold_the_runs_numbers(trained):
    with (trained / "zoo.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["simclr", "vicreg", "raw pixels", "untrained small-4"]
    for name, found in results(trained).items():
        scores = found["scores"]
        end, start = scores["encodings"], scores["untrained encodings"]
        assert float(rows[name]["5-nn"]) == end["knn"]
        assert float(rows[name]["linear probe"]) == end["probe"]
        assert float(rows[name]["ARI"]) == end["ari"]
        assert float(rows[name]["over untrained"]) == pytest.approx(end["knn"] - start["knn"])
        for folder, backend, column in (
            ("ours", "native", "loss, ms a step"),
            ("plain", "reference", "plain PyTorch"),
        ):
            timed = json.loads((trained / "timed" / folder / name / "results.json").read_text())
            assert timed["loss_backend"] == backend and timed["history"][-1]["epoch"] == 2
            step = 1000 * timed["loss_seconds"] / timed["steps"]
            assert float(rows[name][column]) == step
        assert float(rows["raw pixels"]["5-nn"]) == scores["raw pixels"]["knn"]
        assert float(rows["untrained small-4"]["ARI"]) == start["ari"]
    assert (trained / "zoo.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_names_date_machine_and_what_was_reached(trained):
    page = (trained / "zoo.md").read_text()
    found = results(trained)["simclr"]
    assert page.startswith(f"Encodings of digits by 2 methods, {machine.sentence(found)}\n")
    assert "By 5-nn, " in page and "![zoo](zoo.png)" in page
    assert f"| {found['scores']['encodings']['knn']:.1%} |" in page


def test_the_summary_counts():
    scores = {"raw pixels": {"knn": 0.5}, "untrained encodings": {"knn": 0.3}}
    runs = {
        str(knn): zoo.Run(None, {}, {"scores": scores | {"encodings": {"knn": knn}}})
        for knn in (0.4, 0.46, 0.51)
    }
    assert "2 of 3 methods are 15% or more above their untrained encoder" in zoo.summary(runs)
    assert "and 1 above raw pixels" in zoo.summary(runs)


def test_a_method_that_fails_leaves_the_others(tmp_path, monkeypatch, capsys, trained):
    def fail(self, batch):
        raise ValueError("the batch collapsed")

    monkeypatch.setattr(SimCLR, "loss", fail)
    out = tmp_path / "out"
    out.mkdir()
    for kept in ("vicreg", "timed"):
        (out / kept).symlink_to(trained / kept)
    assert main([*COMMAND, "--out", str(out)]) == 1
    page = (out / "zoo.md").read_text()
    assert "| vicreg |" in page and "| simclr |" not in page
    assert "simclr failed: step 0: the batch collapsed" in page
    assert "simclr failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--methods", "--methods names none: choose among simclr"),
        ("--methods simclr swaf", "Did you mean 'swav'?"),
        ("--data digit", "Did you mean 'digits'?"),
        ("--method simclr", "--method is the zoo's own"),
        ("--run_dir=x", "--run-dir is the zoo's own"),
        ("--epohs 3", "Did you mean --epochs?"),
        ("--epochs many", "many"),
        ("--methods simclr vicreg --simclr.temperature 1", "--simclr.temperature"),
        ("--methods simclr --out OUT --epochs 2 --encoder small-4", "with epochs 1, and this asks"),
        ("--methods simclr --out OUT --epochs 1 --encoder small-4 --simclr.temperature 0.5",
         "with simclr.temperature 0.2, and this asks for 0.5: choose another --out"),
        ("--methods simclr --out EMPTY", "holds no run of ssl-fast train"),
    ],
)  # fmt: skip
def test_what_is_refused(arguments, message, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty/simclr").mkdir(parents=True)
    arguments = arguments.replace("OUT", str(trained)).replace("EMPTY", "empty")
    command = ["zoo", *arguments.split(), "--accelerator", "cpu", "--progress", "off"]
    if arguments.endswith("--methods"):
        command = ["zoo", "--methods"]
    assert main(command) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["empty"], "nothing was trained"


def test_runs_of_another_method_are_refused(trained, tmp_path):
    (tmp_path / "vicreg").symlink_to(trained / "simclr")
    command = ["--method", "vicreg", "--data", "digits"]
    with pytest.raises(UsageError, match="was started with method simclr, and this asks for vicr"):
        zoo.check_kept(tmp_path / "vicreg", command)


def test_all_methods_by_default():
    commands = zoo.commands_of(zoo.build_parser().parse_args([]), [])
    assert list(commands) == list(METHODS)
    assert commands["resa"] == ["--method", "resa", "--data", "digits"]


def test_the_example_in_the_help_runs(capsys, trained):
    with pytest.raises(SystemExit) as stop:
        main(["zoo", "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(option in text for option in ("--data", "--methods", "--epochs", "--out"))
    (example,) = re.findall(r"ssl-fast zoo .* --out runs/zoo", text)
    command = shlex.split(example.replace("runs/zoo", str(trained)))[1:]
    assert main([*command, "--accelerator", "cpu", "--progress", "off"]) == 0


def test_what_is_timed_has_every_term():
    assert zoo.timed("pcl", "plain") == [
        "--epochs", "2", "--loss-backend", "reference", "--pcl.first-epoch=0"
    ]  # fmt: skip
    assert zoo.timed("resa", "ours") == ["--epochs", "2", "--loss-backend", "auto"]


def test_points_are_read_as_percentages():
    table = Table("t", ["a"], [[Points(-0.0527)]])
    assert "| -5.3 |" in table.markdown()
    assert table.csv() == "a\n-0.0527\n"
