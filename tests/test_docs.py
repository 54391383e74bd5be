"""Every Python snippet of the documentation runs; every message it explains is one we print."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [p for p in sorted((ROOT / "docs").glob("**/*.md")) if "```python" in p.read_text()]
HEADINGS = re.findall(r"(.+)\n: {3}", (ROOT / "docs/install.md").read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_snippets_run(page, tmp_path):
    """In one process a page, in their order, as a reader would paste them."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("message", re.findall(r"`([^`]+)`", "\n".join(HEADINGS)))
def test_explained_messages_exist(message):
    """In the source, where string literals may continue on the next line."""
    sources = [ROOT / "setup.py", *(ROOT / "ssl_fast").glob("**/*.py")]
    text = "\n".join(source.read_text() for source in sources)
    assert message in re.sub(r"[\"']\s*\n\s*f?[\"']", "", text)
