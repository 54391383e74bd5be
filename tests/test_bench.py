"""The benchmark: its arithmetic, its files, and that it refuses to time a wrong result."""

import csv
import dataclasses
import json
import subprocess
from importlib import import_module
from pathlib import Path

import numpy
import pytest
import torch
from ssl_fast.bench import __main__ as command
from ssl_fast.bench import (
    bench_cross_entropy,
    bench_sinkhorn,
    compat,
    every_kernel,
    harness,
    machine,
    memory,
    report,
    timers,
)
from ssl_fast.bench.cases import Bar, Case, Floor, Limit, Problem
from ssl_fast.bench.oracle import WrongResult
from ssl_fast.bench.rows import Row, spread, summarise

from ssl_fast import backend, cli

MODULES = [import_module(f"ssl_fast.bench.bench_{stem}") for stem in command.STEMS]
QUICK = harness.Options(rounds=3, without_compile="--no-compile", backend="reference", quick=True)
EVERY = [case for module in MODULES for case in module.CASES]


@pytest.fixture(autouse=True)
def _small_and_single(monkeypatch):
    """A small floor, and one thread: what is timed here does not matter."""
    monkeypatch.setattr(timers, "_COPY_BYTES", {"cpu": 1 << 16})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny(case: Case, **changes) -> Case:
    """The same problem at a size that takes no time, without rivals."""
    problem = dataclasses.replace(case.problem, **{"rivals": (), **changes})
    rows = 12
    shape = {2: (rows, 20), 3: (rows, 20, 8), 4: (2, rows, 20, 8)}[len(case.shape)]
    return dataclasses.replace(case, problem=problem, shape=shape, dtype="float32", device="cpu")


@pytest.mark.parametrize(
    "case", list({c.problem.name: c for c in EVERY}.values()), ids=lambda case: case.problem.name
)
def test_every_problem_runs(case):
    rows = list(harness.measure(tiny(case), QUICK))
    directions = ["forward", "backward", "both"] if case.problem.differentiable else ["forward"]
    assert [row.direction for row in rows] == directions
    assert {row.backend for row in rows} == {"reference"}
    assert all(row.milliseconds["ours"] > 0 and row.rounds == 3 for row in rows)
    assert all(not bar["met"] for bar in rows[-1].bars), "plain PyTorch meets no bar"
    assert rows[0].skipped["compile"] == "--no-compile"


def test_reports_whole_files(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench_sinkhorn, "CASES", [tiny(bench_sinkhorn.CASES[0])])
    arguments = ["sinkhorn", "--device", "cpu", "--rounds", "2", "--no-compile"]
    assert command.main([*arguments, "--backend", "reference", "--out", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert "| sinkhorn 12x20 float32 | forward |" in table
    assert "2 rounds: a look, not a result" in table
    assert (tmp_path / "bench_cpu.md").read_text() == table
    results = json.loads((tmp_path / "bench_cpu.json").read_text())
    assert results["machine"]["torch"] == torch.__version__
    assert results["machine"]["threads"] == torch.get_num_threads()
    assert results["rows"][0]["backend"] == "reference"
    with open(tmp_path / "bench_cpu.csv") as lines:
        row = next(csv.DictReader(lines))
    assert float(row["milliseconds_ours"]) == results["rows"][0]["milliseconds"]["ours"]
    names = {path.name for path in tmp_path.iterdir()} - {"bench_cpu.png"}
    assert names == {"bench_cpu.md", "bench_cpu.json", "bench_cpu.csv"}


@pytest.mark.parametrize("swap", compat.SWAPS, ids=lambda swap: f"{swap.name}-{swap.shapes[0]}")
def test_compat_beside_lightly(swap):
    """Both have the same buffers, and begin anew at every call: equal results in every round."""
    pytest.importorskip("lightly")
    options = dataclasses.replace(QUICK, backend="auto")
    row = list(harness.measure(swap.case(swap.shapes[0]), options))[-1]
    assert (
        row.stem == "compat"
        and row.backend != "reference"
        and row.bars[0]["text"].startswith(">= 1 x")
    )
    table = compat.table([row])
    assert f"| {swap.name} |" in table and f"geometric mean {row.speedup.median:.2f} x" in table


def test_compat_needs_lightly(monkeypatch, capsys):
    monkeypatch.setattr(compat, "find_spec", lambda name: None)
    assert command.main(["--compat", "--device", "cpu"]) == 2
    assert "pip install lightly" in capsys.readouterr().err


def test_a_wrong_result_is_a_failure_and_no_row(monkeypatch, tmp_path, capsys):
    wrong = tiny(bench_sinkhorn.CASES[0], ours=lambda s: bench_sinkhorn.eager(s) * 1.001)
    monkeypatch.setattr(bench_sinkhorn, "CASES", [wrong])
    arguments = ["sinkhorn", "--device", "cpu", "--no-compile", "--out", str(tmp_path)]
    assert command.main(arguments) == 1
    results = json.loads((tmp_path / "bench_cpu.json").read_text())
    assert results["rows"] == []
    assert "ours's value is off by" in results["failures"][str(wrong)]
    assert "**failed**" in capsys.readouterr().out


def test_a_wrong_gradient_is_found():
    def steeper(logits, targets):
        return bench_cross_entropy.eager(1.5 * logits - 0.5 * logits.detach(), targets)

    with pytest.raises(WrongResult, match="ours's gradient 1 is off by"):
        next(harness.measure(tiny(bench_cross_entropy.CASES[0], ours=steeper), QUICK))


def test_a_rival_that_is_missing_or_wrong_is_left_out_with_its_reason():
    twice = ("twice", lambda: lambda scores: 2 * bench_sinkhorn.eager(scores))
    lightly = ("lightly", bench_sinkhorn.lightly)
    row = next(harness.measure(tiny(bench_sinkhorn.CASES[0], rivals=(twice, lightly)), QUICK))
    assert "twice" not in row.milliseconds and "off by" in row.skipped["twice"]
    assert "lightly" in row.milliseconds or "not installed" in row.skipped["lightly"]


def test_lightlys_class_is_compiled_too_where_a_bar_is_against_it(monkeypatch):
    calls = []
    monkeypatch.setattr(harness, "_compiled", lambda f: calls.append(f) or f)
    lightly = ("lightly", lambda: bench_sinkhorn.eager)
    case = dataclasses.replace(
        tiny(bench_sinkhorn.CASES[0], rivals=(lightly,)), bar=Bar(1, "Lightly"), limit=None
    )
    options = dataclasses.replace(QUICK, without_compile="", quick=False)
    row = next(harness.measure(case, options))
    assert list(row.milliseconds) == ["eager", "compile", "lightly", "lightly compiled", "ours"]
    assert len(calls) == 2 and row.bars[0]["text"] == ">= 1 x Lightly"


def summary(case: Case, ran: str, rivals: dict | None = None) -> Row:
    """Rounds on a machine whose speed drifts by a factor of four, while ratios stay."""
    drift = [1.0, 4.0, 2.0]
    timed = {
        "eager": [(6e-3 * d, 2e-3 * d) for d in drift],
        "compile": [(5e-3 * d, 1e-3 * d) for d in drift],
        "ours": [(1e-3 * d, 1e-3 * d) for d in drift],
        "floor": [(0.5e-3 * d, 1e-3 * d) for d in drift],
    }
    timed |= rivals or {}
    common = {"launch": "python", "steps_a_round": 1, "errors": {}, "skipped": {}}
    common |= {"peak_bytes": {}, "kept_bytes": {"ours": 8}, "backend": ran}
    return summarise(case, case.arguments(), timed, common)[-1]


def test_ratios_are_medians_over_rounds():
    problem = Problem("s", "p", lambda *_: [], None, None, lambda: Floor("f", 1.0), (0,))
    case = Case(problem, (1,), bar=Bar(3), limit=Limit(1.3))
    row = summary(case, "native")
    assert row.direction == "both" and row.fastest == "compile"
    assert row.milliseconds == pytest.approx({"eager": 16, "compile": 12, "ours": 4})
    assert dataclasses.astuple(row.speedup) == pytest.approx((3, 3, 3))
    assert row.floor_percent == pytest.approx(75) and row.floor_ms == pytest.approx(3)
    assert [bar["met"] for bar in row.bars] == [True, False]  # 3 x; 4/3 of the floor
    assert row.bars[0]["reached"] == "3.00 x compile"
    against_eager = dataclasses.replace(case, bar=Bar(4, against="eager"))
    assert summary(against_eager, "native").bars[0] == {
        "text": ">= 4 x eager", "reached": "4.00 x eager", "met": True,
    }  # fmt: skip
    assert not any(bar["met"] for bar in summary(case, "native+reference").bars)


def test_a_bar_against_lightly_takes_its_faster_form_and_the_formula_besides():
    problem = Problem("s", "p", lambda *_: [], None, None, lambda: Floor("f", 1.0), (0,))
    case = Case(problem, (1,), bar=Bar(3.5, "Lightly"))
    lightly = {"lightly": [(9e-3, 1e-3)] * 3, "lightly compiled": [(7e-3, 1e-3)] * 3}
    reached = [bar["reached"] for bar in summary(case, "native", lightly).bars]
    assert reached == ["2.00 x lightly compiled", "3.00 x compile"]
    without = [(bar["reached"], bar["met"]) for bar in summary(case, "native").bars]
    assert without == [("3.00 x compile", False), ("3.00 x compile", True)]


def test_memory_has_a_bar_too():
    case = tiny(bench_cross_entropy.CASES[-1])
    arguments = case.arguments()
    limit = case.problem.memory(*arguments)
    assert limit.kind == "kept"
    row = summary(dataclasses.replace(case, bar=None, limit=None), "native")
    assert [bar["met"] for bar in row.bars] == [True]
    assert row.bars[0]["text"] == str(limit)


def test_the_script_for_the_sanitizer_runs(capsys):
    assert every_kernel.main(["reference"]) == 0
    assert "calls of reference on" in capsys.readouterr().out


def test_spread_is_the_middle_eighty_percent():
    found = spread(numpy.arange(101.0))
    assert dataclasses.astuple(found) == pytest.approx((50, 10, 90))


def test_peak_memory_counts_what_lives_at_once():
    x = torch.randn(1000, 256)

    def function(a):
        b = a * 2  # 1 MB, freed before the sum is taken
        c = b + 1
        del b
        return c.exp().sum()

    peak, kept = memory.extra(function, [x], (0,))
    size = x.numel() * 4
    assert kept == size  # exp keeps its result
    assert 2 * size <= peak < 3.1 * size


def test_half_written_files_never_appear(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")

    def fail(part: Path):
        part.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        report.replace(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_warns_of_a_busy_machine_and_of_threads():
    quiet = {"load_at_start": 0.1, "cores": 2, "threads": 2}
    assert machine.warnings(quiet) == []
    assert "load average is 3.0" in machine.warnings(quiet | {"load_at_start": 3.0})[0]
    assert "OMP_NUM_THREADS=2" in machine.warnings(quiet | {"threads": 1})[0]


def test_tables_hold_the_listed_sizes_once():
    names = list(map(str, EVERY))
    assert len(set(names)) == len(names)
    for name in (
        "sinkhorn 256x65536 float32 cpu",
        "sinkhorn 4096x65536 bfloat16 cuda",
        "soft_cross_entropy 8x16 float32 cpu",
        "ReSA 1024x512x512 float32 cpu",
    ):
        assert name in names
    assert all(case.bar or case.limit for case in EVERY)


def test_every_stem_has_a_case():
    stems = {stem for _, stem in backend.PREFERENCE} - {"linear_cross_entropy"}  # in cross_entropy
    assert stems <= {case.problem.stem for case in EVERY}


def test_options_select_cases(capsys):
    assert command.main(["sinkhorn", "--device", "cpu", "--list", "--filter", "777"]) == 0
    assert capsys.readouterr().out == "sinkhorn 100x777 float32 cpu\n"
    listed = ["sinkhorn", "--device", "cpu", "--list", "--filter", "777", "--dtype", "bfloat16"]
    assert command.main(listed) == 0
    assert capsys.readouterr().out == "sinkhorn 100x777 bfloat16 cpu\n"
    assert command.main(["--device", "cpu", "--filter", "nothing"]) == 2
    assert "no case on cpu matches" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["sinkhron"])
    assert "choose from contrastive, cosine, covariance" in capsys.readouterr().err


def test_the_time_limit_leaves_cases_out_by_name(monkeypatch, capsys):
    monkeypatch.setattr(bench_sinkhorn, "CASES", [tiny(bench_sinkhorn.CASES[0])] * 2)
    arguments = ["sinkhorn", "--device", "cpu", "--no-compile", "--backend", "reference"]
    assert command.main([*arguments, "--rounds", "1", "--time-limit", "1e-9"]) == 0
    assert "not run: sinkhorn 12x20 float32 cpu: time limit" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_said(capsys):
    assert command.main(["--device", "cuda"]) == 2
    assert "PyTorch finds no GPU" in capsys.readouterr().err


def test_help_shows_examples_that_parse(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["bench", "--help"])
    text = capsys.readouterr().out
    lines = [line.strip() for line in text.splitlines() if line.startswith("  ssl-fast bench")]
    assert len(lines) > 4
    for line in lines:
        example, _, explained = line.partition("   ")
        assert explained
        command.parser().parse_args(example.split()[2:])


@pytest.mark.parametrize("arguments", [["--help"], []])
def test_gpu_check_explains(arguments):
    script = Path(__file__).parent.parent / "bench" / "gpu_check.sh"
    done = subprocess.run(["bash", script, *arguments], capture_output=True, text=True)
    assert "usage: bench/gpu_check.sh OUT_DIR" in done.stdout + done.stderr
    assert done.returncode == (0 if arguments else 2)
