"""`python -m ssl_fast.info` tells what is on, and what to do about what is off."""

import json
import subprocess
import sys

import pytest
import torch

from ssl_fast import info, native
from ssl_fast._version import __version__


def run(*arguments: str) -> str:
    command = [sys.executable, "-m", "ssl_fast.info", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_report_names_every_backend_and_version():
    text = info.report(info.collect())
    for word in (
        "native cpu",
        "native cuda",
        "triton",
        "reference",
        __version__,
        torch.__version__,
    ):
        assert word in text


def test_json_is_what_collect_returns():
    assert json.loads(run("--json")) == json.loads(json.dumps(info.collect()))


def test_help_explains():
    assert "which backends are on" in " ".join(run("--help").split())


def test_reasons_of_a_build_without_compiler(monkeypatch):
    reason = "no C++ compiler was found (g++); install g++ and reinstall ssl_fast"
    monkeypatch.setattr(native, "build_record", lambda: {"cpu": reason, "cuda": reason})
    monkeypatch.setattr(native, "import_module", missing)
    monkeypatch.setattr(native.cuda, "import_module", missing)
    native.why_not.cache_clear()
    native.cpu.cache_clear()
    native.cuda.module.cache_clear()
    try:
        collected = info.collect()
        assert collected["backends"]["native cpu"] == reason
        assert collected["backends"]["native cuda"] == reason
        assert f"off: {reason}" in info.report(collected)
    finally:
        native.why_not.cache_clear()


def missing(name: str):
    raise ImportError(name)


def test_works_without_triton(monkeypatch):
    monkeypatch.setattr(info.importlib.util, "find_spec", lambda name: None)
    assert "pip install triton" in info.why_no_triton()


def test_triton_needs_a_c_compiler_and_python_h(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CC", "/nonexistent/cc")
    assert "C compiler" in info.why_no_triton()
    monkeypatch.setenv("CC", sys.executable)
    monkeypatch.setattr(info.sysconfig, "get_paths", lambda: {"include": "/nonexistent"})
    assert "Python.h" in info.why_no_triton()
