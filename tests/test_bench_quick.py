"""`ssl-fast bench --quick`: every loss is in it and right; what its table, plot and clock say."""

import dataclasses
import json

import pytest
import torch
from ssl_fast.bench import __main__ as command
from ssl_fast.bench import harness, quick, report
from ssl_fast.bench import losses as table
from ssl_fast.bench.oracle import Oracle, check
from ssl_fast.bench.rows import Row, summarise

from ssl_fast import losses

CASES = table.cases("cpu")
MACHINE = {"cpu": "c", "threads": 1, "ssl_fast": "0", "torch": "0"}


@pytest.fixture(autouse=True)
def _single_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_no_loss_is_forgotten():
    assert {case.problem.name for case in CASES} == set(losses.__all__) - {"MemoryQueue"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.problem.name)
def test_every_contender_computes_the_same(case):
    oracle = Oracle(case, case.arguments())
    check(oracle)
    _, skipped = harness.contenders(oracle, harness.Options(without_compile="slow"))
    assert set(skipped) == {"compile"} or "not installed" in skipped["lightly"]


def test_prints_a_row_a_loss_and_writes_a_plot(tmp_path, capsys):
    arguments = ["--quick", "--device", "cpu", "--rounds", "1", "--no-compile"]
    out = ["--filter", "TiCoLoss", "--out", str(tmp_path)]
    assert command.main([*arguments, *out]) == 0
    said = capsys.readouterr()
    assert "| loss | shape | ours ms | Lightly ms | eager ms |" in said.out
    assert "| TiCoLoss | 256 x 256 |" in said.out and "x eager (of 1 losses)" in said.out
    assert "compile left out: --no-compile" in said.out
    assert "[1/1] TiCoLoss 256x256 float32 cpu" in said.err
    assert (tmp_path / "quick_cpu.png").read_bytes()[1:4] == b"PNG"
    assert (tmp_path / "quick_cpu.md").read_text() == said.out
    (row,) = report_rows(tmp_path, "both")
    assert row["ratios"]["eager"] > 0 and row["ratios"]["ours"] == 1


def report_rows(folder, direction: str) -> list[dict]:
    rows = json.loads((folder / "quick_cpu.json").read_text())["rows"]
    return [row for row in rows if row["direction"] == direction]


def timed(name: str, **seconds: float) -> Row:
    case = dataclasses.replace(CASES[0], problem=dataclasses.replace(CASES[0].problem, name=name))
    samples = {key: [(each, each)] * 3 for key, each in {**seconds, "floor": 0.0}.items()}
    common = {"launch": "python", "steps_a_round": 1, "errors": {}, "skipped": {}}
    common |= {"peak_bytes": {}, "kept_bytes": {}, "backend": "native"}
    return summarise(case, case.arguments(), samples, common)[-1]


def test_gains_are_summed_up_by_geometric_means():
    rows = [timed("a", eager=0.004, lightly=0.001, ours=0.001), timed("b", eager=0.009, ours=0.001)]
    text = quick.table(rows)
    assert "| a | 512 x 128 | 2 | 2 | 8 | - | 1.00 | 4.00 | - |" in text
    assert text.endswith("1.00 x Lightly (of 1 losses), 6.00 x eager (of 2 losses)")


def run(monkeypatch, seconds: float, compile_seconds: float) -> tuple[report.Results, list[str]]:
    """Three cases on a clock that compilation alone moves."""
    now, done, results = [0.0], [], report.Results(MACHINE)
    monkeypatch.setattr(quick.time, "monotonic", lambda: now[0])

    def attempt(case, options, into):
        name = case.problem.name
        done.append(name if options.without_compile else f"compiled {name}")
        now[0] += 0 if options.without_compile else compile_seconds
        found = {} if options.without_compile else {"compile": 0.002}
        into.rows.append(timed(name, eager=0.004, ours=0.001, **found))
        return ""

    monkeypatch.setattr(quick, "attempt", attempt)
    silent = (lambda _: None,) * 2
    quick.measure(CASES[:3], harness.Options(), results, seconds, *silent)
    return results, done


def test_compiles_as_long_as_it_fits(monkeypatch):
    names = [case.problem.name for case in CASES[:3]]
    results, done = run(monkeypatch, seconds=30, compile_seconds=12)
    assert done == [*names, f"compiled {names[0]}", f"compiled {names[1]}"]
    assert [row.problem for row in results.rows] == names
    assert ["compile" in row.ratios for row in results.rows] == [True, True, False]
    assert run(monkeypatch, seconds=9, compile_seconds=12)[1] == names


def test_a_case_of_its_own_needs_no_stem(capsys):
    with pytest.raises(SystemExit):
        command.main(["sinkhorn", "--quick"])
    assert "choose among them with --filter" in capsys.readouterr().err
