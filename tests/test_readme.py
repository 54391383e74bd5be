"""The README's Python runs and prints what the README says."""

import contextlib
import io
import re
from pathlib import Path

import pytest
from ssl_fast.bench.readme import table

from ssl_fast import losses

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_swap_a_loss():
    code, printed = re.findall(r"```(?:python|text)\n(.*?)```", README, re.DOTALL)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(code, "README.md", "exec"), {})
    assert output.getvalue() == printed
    by_hand, ours = printed.split()
    assert by_hand == ours


def test_figures_are_the_measured_ones():
    """The table is what `python -m bench.readme bench/results/cpu-2-cores` prints."""
    assert table(ROOT / "bench/results/cpu-2-cores/bench_cpu.json") in README


def test_names_every_loss_and_method():
    methods = pytest.importorskip("ssl_fast.train.methods", reason="needs ssl_fast[train]").METHODS
    assert all(f"`{name}`" in README for name in [*losses.__all__, *methods])


def test_links_lead_somewhere():
    links = re.findall(r"\]\((\w[^)#]*)", README)
    assert links and all((ROOT / link).exists() for link in links)
