"""Snippets of the documentation run; its messages, commands and losses are those we have."""

import contextlib
import importlib
import importlib.util
import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from ssl_fast import cli, functional, losses, metrics

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [p for p in sorted(DOCS.glob("**/*.md")) if "```python" in p.read_text()]
HEADINGS = re.findall(r"(.+)\n: {3}", (DOCS / "install.md").read_text())

specification = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
hooks = importlib.util.module_from_spec(specification)
specification.loader.exec_module(hooks)


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


def test_every_loss_has_a_page():
    """One, in the navigation, under its name."""
    pages = {name: page for page in hooks.PAGES for name in hooks.documented(page)}
    assert sorted(pages) == sorted(losses.__all__)
    for name, page in pages.items():
        assert name in page.read_text().partition("\n")[0]


def test_every_method_has_a_page():
    train = pytest.importorskip("ssl_fast.train.methods", reason="needs ssl_fast[train]")
    assert {name for page in hooks.PAGES for name in hooks.trained(page)} == set(train.METHODS)


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in DOCS.glob("**/*.md"):
        assert f" {page.relative_to(DOCS)}\n" in navigation


@pytest.mark.parametrize(
    ("page", "module"),
    [("functions", functional), ("metrics", metrics)],
    ids=["functions", "metrics"],
)
def test_every_function_is_documented(page, module):
    text = (DOCS / f"{page}.md").read_text()
    for name in module.__all__:
        assert isinstance(getattr(module, name), type) or f"{module.__name__}.{name}\n" in text


def test_every_study_has_its_examples():
    experiments = pytest.importorskip("ssl_fast.experiments.frame", reason="needs ssl_fast[train]")
    text = (DOCS / "experiments.md").read_text()
    for name, (module, _) in experiments.EXPERIMENTS.items():
        example = importlib.import_module(f"ssl_fast.experiments.{module}").EXAMPLE
        commands = "\n".join(line.strip() for line in example.splitlines())
        assert f"## {name}\n\n```bash\n{commands}\n```" in text


def test_commands_exist():
    """And train what stands on the page that names them."""
    train = pytest.importorskip("ssl_fast.train.methods", reason="needs ssl_fast[train]")
    for page in [*DOCS.glob("**/*.md"), ROOT / "README.md"]:
        for command, method in re.findall(r"ssl-fast (\w+)(?: --method (\w+))?", page.read_text()):
            assert command in cli.COMMANDS, page
            if method and page in hooks.PAGES:
                assert train.METHODS[method].loss_class in page.read_text(), page


def test_options_exist(capsys):
    """Those of every command line, in its own help."""
    pytest.importorskip("ssl_fast.train.methods", reason="needs ssl_fast[train]")
    helps: dict[str, str] = {}
    for page in [*DOCS.glob("**/*.md"), ROOT / "README.md"]:
        for line in re.findall(r"^ssl-fast ([^#\n]+)", page.read_text(), re.MULTILINE):
            asked = re.match(r"experiment [\w-]+|\w+( --method \w+)?", line)[0]
            if asked not in helps:
                with contextlib.suppress(SystemExit):
                    cli.main([*asked.split(), "--help"])
                helps[asked] = capsys.readouterr().out
            for option in re.findall(r"--[\w.-]+", line):
                assert f"{option} " in helps[asked], f"{page}: ssl-fast {line}"


def test_bytes_of_a_snippet():
    """Those of tensors passed in, and those saved beside them, once each."""
    code = "x = torch.ones(100, requires_grad=True); y = [torch.ones(7)]; x.exp().exp().sum()"
    assert hooks.bytes_of(f"import torch; {code}") == (428, 800)
    assert "0.0004 MB" in hooks.memory("import torch; x = torch.ones(100)")
