"""What MkDocs computes while it builds: tables of methods, backends and results; kept bytes."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from ssl_fast.bench.readme import table

from ssl_fast import losses
from ssl_fast.backend import PREFERENCE

METHODS = Path(__file__).parent / "methods"
PAGES = sorted(page for page in METHODS.glob("*.md") if page.stem != "index")
ROOT = METHODS.parents[1]
RESULTS = sorted((ROOT / "bench/results").glob("*/bench_cpu.json"))
SWAPS = sorted((ROOT / "bench/results").glob("*/compat_cpu.md"))
SNIPPET = re.compile(r"```python\n(.*?)```\n", re.DOTALL)


def on_files(files, config, **_) -> None:
    """Figures that the benchmark drew."""
    from mkdocs.structure.files import File

    for path in RESULTS:
        png = str(path.with_suffix(".png"))
        files.append(File.generated(config, f"{path.parent.name}.png", abs_src_path=png))


def on_page_markdown(markdown: str, page, **_) -> str:
    folder, _, name = page.file.src_uri.rpartition("/")
    if folder == "methods" and name != "index.md":
        return SNIPPET.sub(lambda found: found[0] + "\n" + memory(found[1]), markdown, count=1)
    return re.sub(r"{{ (\w+) }}", lambda found: PARTS[found[1]](), markdown)


def methods() -> str:
    """Each loss with its page, the first line of its docstring, and what trains it."""
    lines = ["| loss | computes | `ssl-fast train --method` |", "|---|---|---|"]
    for page in PAGES:
        title, _, text = page.read_text().partition("\n\n")
        told = {name: getattr(losses, name).__doc__ or "" for name in documented(page)}
        told = told or {title.strip("# "): text.partition(":")[0]}  # a control: PyTorch's loss
        names = " ".join(f"`{name}`" for name in trained(page))
        for loss, about in told.items():
            lines.append(f"| [{loss}]({page.name}) | {about.splitlines()[0]} | {names} |")
    return "\n".join(lines) + "\n"


def backends() -> str:
    """What `auto` tries for each stem, in this order."""
    stems = dict.fromkeys(stem for _, stem in PREFERENCE)
    lines = ["| stem | CPU | CUDA |", "|---|---|---|"]
    for stem in stems:
        orders = (", ".join(PREFERENCE[device, stem]) for device in ("cpu", "cuda"))
        lines.append(f"| {stem} | {' | '.join(orders)} |")
    return "\n".join(lines) + "\n"


def results() -> str:
    """Each machine's warnings, figure and table."""
    parts = []
    for path in RESULTS:
        name = path.parent.name
        warnings = [f"**Warning:** {each}." for each in json.loads(path.read_text())["warnings"]]
        parts += [f"## {name}", *warnings, f"![Speedups]({name}.png)", table(path)]
    return "\n\n".join(parts)


def compat() -> str:
    """Lightly's classes beside ours, as the benchmark wrote them down."""
    return "\n\n".join(path.read_text() for path in SWAPS)


def readme() -> str:
    """Its links are relative to the clone."""
    return (ROOT / "README.md").read_text().replace("](docs/", "](")


PARTS = {
    "methods": methods, "backends": backends, "results": results, "compat": compat,
    "readme": readme,
}  # fmt: skip


def documented(page: Path) -> list[str]:
    return re.findall(r"^::: ssl_fast\.losses\.(\w+)", page.read_text(), re.MULTILINE)


def trained(page: Path) -> list[str]:
    """Methods of the driver that the page belongs to."""
    return list(dict.fromkeys(re.findall(r"train --method (\w+)`", page.read_text())))


def memory(code: str) -> str:
    """A sentence on the memory of a snippet."""
    inputs, kept = (f"{size / 1e6:.3g} MB" for size in bytes_of(code))
    return f"Tensors passed in: {inputs}. Kept beside them until backward: {kept}.\n"


def bytes_of(code: str) -> tuple[int, int]:
    """Bytes of the tensors that a snippet makes and names, and of those that autograd saves."""
    names: dict = {}
    saved: list[torch.Tensor] = []

    def pack(x: torch.Tensor) -> torch.Tensor:
        saved.append(x)  # alive, so that no other tensor takes its place in memory
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        exec(code, names)
    given, kept = storages(tensors(list(names.values()))), storages(saved)
    return sum(given.values()), sum(size for at, size in kept.items() if at not in given)


def storages(found: Iterable[torch.Tensor]) -> dict[int, int]:
    """Address and bytes."""
    held = (x.untyped_storage() for x in found)
    return {storage.data_ptr(): storage.nbytes() for storage in held}


def tensors(value) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors(each)
