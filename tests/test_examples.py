"""The examples run as their readers run them, for a few steps."""

import re
import runpy
import sys
from pathlib import Path

import pytest

pytest.importorskip("timm", reason="the examples need the extra: pip install 'ssl_fast[train]'")
EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = sorted({path.stem for path in EXAMPLES.glob("*.py")} - {"shared"})


@pytest.mark.parametrize("name", SCRIPTS)
def test_runs_for_some_steps(name, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.delitem(sys.modules, "shared", raising=False)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--steps", "3", "--batch-size", "8"])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    said = capsys.readouterr().out
    (loss,) = re.findall(r"step    0  loss (-?\d+\.\d+)\n", said)
    assert float(loss) > 0
    (percent,) = re.findall(r"nearest neighbours: (\d+\.\d)%", said)
    assert float(percent) > 20  # 10 is chance


def test_the_readme_names_every_example():
    text = (EXAMPLES / "README.md").read_text().lower()
    assert SCRIPTS == ["dino", "msn", "simclr", "swav", "vicreg"]
    assert all(name in text for name in SCRIPTS)
