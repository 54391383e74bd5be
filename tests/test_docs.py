"""Every Python snippet of the documentation runs; every message it explains is one we print."""

import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [p for p in sorted(DOCS.glob("**/*.md")) if "```python" in p.read_text()]
HEADINGS = re.findall(r"(.+)\n: {3}", (DOCS / "install.md").read_text())


@pytest.fixture(scope="module")
def processes():
    """Fresh ones, forked where PyTorch is imported already and has not computed yet."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ssl_fast.losses"])
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as pool:
        yield pool


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_snippets_run(page, processes, tmp_path):
    """In one process a page, in their order, as a reader would paste them."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
    processes.submit(exec, f"import os; os.chdir({str(tmp_path)!r})\n{code}", {}).result()


@pytest.mark.parametrize("message", re.findall(r"`([^`]+)`", "\n".join(HEADINGS)))
def test_explained_messages_exist(message):
    """In the source, where string literals may continue on the next line."""
    sources = [ROOT / "setup.py", *(ROOT / "ssl_fast").glob("**/*.py")]
    text = "\n".join(source.read_text() for source in sources)
    assert message in re.sub(r"[\"']\s*\n\s*f?[\"']", "", text)
