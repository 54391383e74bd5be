"""The page on training: its method trains."""

import re
from pathlib import Path

import pytest

for package in ("lightning", "torchvision", "sklearn", "timm", "jsonargparse"):
    pytest.importorskip(package, reason="the driver needs pip install ssl_fast[train]")

from ssl_fast.cli import main  # noqa: E402
from ssl_fast.train import callbacks, run  # noqa: E402
from ssl_fast.train.methods import METHODS  # noqa: E402

PAGE = (Path(__file__).parents[1] / "docs/training.md").read_text()


def test_a_method_of_your_own(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "finish", lambda *arguments: None)
    monkeypatch.setattr(callbacks.Monitor, "_accuracy", lambda *arguments: 0.0)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    before = dict(METHODS)
    try:
        exec(compile(code, "training.md", "exec"), {"__name__": "snippet"})
        command = "train --method dcl --dcl.temperature 0.2 --encoder small-4 --epochs 1"
        assert main([*command.split(), "--progress", "off", "--run-dir", str(tmp_path)]) == 0
        assert "temperature: 0.2" in (tmp_path / "config.yaml").read_text()
    finally:
        METHODS.clear()
        METHODS.update(before)


def test_the_page_names_real_commands():
    for name in re.findall(r"--method (\w+)", PAGE):
        assert name in {*METHODS, "dcl"}
