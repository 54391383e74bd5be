"""Training: the method that the documentation adds trains, its commands have options that exist."""

import re
from pathlib import Path

import pytest

for package in ("lightning", "torchvision", "sklearn", "timm", "jsonargparse"):
    pytest.importorskip(package, reason="the driver needs pip install ssl_fast[train]")

from ssl_fast.cli import main  # noqa: E402
from ssl_fast.train import callbacks, run  # noqa: E402
from ssl_fast.train.config import check, options_of, parse  # noqa: E402
from ssl_fast.train.methods import METHODS  # noqa: E402

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "training.md").read_text()


def test_a_method_of_your_own(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "finish", lambda *arguments: None)
    monkeypatch.setattr(callbacks.Monitor, "_accuracy", lambda *arguments: 0.0)
    *_, code = re.findall(r"```python\n(.*?)```", (DOCS / "adding.md").read_text(), re.DOTALL)
    before = dict(METHODS)
    try:
        exec(compile(code, "adding.md", "exec"), {"__name__": "snippet"})
        command = "train --method dcl --dcl.temperature 0.2 --encoder small-4 --epochs 1"
        assert main([*command.split(), "--progress", "off", "--run-dir", str(tmp_path)]) == 0
        assert "temperature: 0.2" in (tmp_path / "config.yaml").read_text()
    finally:
        METHODS.clear()
        METHODS.update(before)


COMMANDS = re.findall(r"^ssl-fast train (.*?)(?: +#.*)?$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("command", [c for c in COMMANDS if not c.endswith("--help")])
def test_commands_are_valid(command):
    """Up to the data, which need not be here."""
    options, own = options_of(parse(command.split())[1])
    check(options)
    if options.data == "digits" and "--resume" not in command:
        source = run.open_source(options)
        run.build_method(options, own, source)
        run.view_data(options, source, (), workers=0)


def test_the_page_names_real_commands():
    for name in re.findall(r"--method (\w+)", PAGE):
        assert name in METHODS
