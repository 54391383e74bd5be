"""The README's table, from the measured results: `python -m bench.readme FOLDER` prints it."""

import json
import sys
from pathlib import Path

from . import compat
from .cases import LIGHTLY

_HEAD = (
    "forward + backward",
    "eager ms",
    "compiled ms",
    "Lightly ms",
    "ours ms",
    "x the faster",
    "% of floor",
    "kept MB, eager / ours",
)


def table(results: Path) -> str:
    """Markdown: a line a case, its whole step (forward where there is no other), and the bars."""
    data = json.loads(results.read_text())
    cases = {(row["problem"], row["size"]): row for row in data["rows"]}  # the last pass is whole
    lines = [_HEAD, ["---", *["---:"] * (len(_HEAD) - 1)]]
    lines += [_cells(name, size, row) for (name, size), row in cases.items()]
    machine = data["machine"]
    where = (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['instruction_set']}, float32, torch "
        f"{machine['torch']}, {machine['date'][:10]}:"
    )
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{where}\n\n{body}\n\n{_bars(data['rows'])}{_swaps(results)}\n"


def _bars(rows: list[dict]) -> str:
    """How many were met, and what the others reached."""
    bars = [(row, bar) for row in rows for bar in row["bars"]]
    missed = [
        f"{row['problem'].replace('_', ' ')} {row['size'].replace('x', ' x ')}: {bar['reached']} "
        f"({bar['text']})"
        for row, bar in bars
        if not bar["met"]
    ]
    met = f"{len(bars) - len(missed)} of {len(bars)} bars met."
    return f"{met} Missed: {'; '.join(missed)}." if missed else met


def _swaps(results: Path) -> str:
    """What `--compat` found on that machine, if it ran."""
    path = results.with_name("compat_cpu.json")
    if not path.exists():
        return ""
    rows = json.loads(path.read_text())["rows"]
    gains = {(row["problem"], row["size"]): row["speedup"]["median"] for row in rows}
    return (
        f"\n\nLightly's classes at {len(gains)} sizes from 8 to 4096 rows: {compat.means(gains)}."
    )


def _lightly(ms: dict[str, float]) -> str:
    """The class's time, eager or compiled, whichever is less."""
    found = [ms[name] for name in LIGHTLY if name in ms]
    return f"{min(found):.3g}" if found else "-"


def _cells(name: str, size: str, row: dict) -> list[str]:
    ms, kept = row["milliseconds"], row["kept_bytes"]
    return [
        f"{name.replace('_', ' ')} {size.replace('x', ' x ')}",
        f"{ms['eager']:.3g}",
        f"{ms['compile']:.3g}",
        _lightly(ms),
        f"{ms['ours']:.3g}",
        f"{row['speedup']['median']:.2f}",
        f"{row['floor_percent']:.0f}",
        f"{kept['eager'] / 1e6:.3g} / {kept['ours'] / 1e6:.3g}",
    ]


if __name__ == "__main__":
    print(table(Path(sys.argv[1]) / "bench_cpu.json"), end="")
