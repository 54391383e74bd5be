"""Rows as a Markdown table, JSON, CSV and a PNG. Files appear whole or not at all."""

import csv
import dataclasses
import io
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .rows import Row

_FIXED = ("eager", "compile", "ours")
_HEAD = (
    "case",
    "pass",
    "eager ms",
    "compile ms",
    "others ms",
    "ours ms",
    "x faster (10-90 %)",
    "% of floor",
    "peak MB eager / ours",
    "kept MB eager / ours",
    "backend",
    "bar",
)


@dataclasses.dataclass
class Results:
    machine: dict[str, Any]
    rows: list[Row] = dataclasses.field(default_factory=list)
    failures: dict[str, str] = dataclasses.field(default_factory=dict)  # case -> message
    not_run: dict[str, str] = dataclasses.field(default_factory=dict)  # case -> why
    warnings: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Form:
    """How results are shown, and what their files are called: <stem>_<device>."""

    stem: str
    table: Callable[[list[Row]], str]
    draw: Callable[[Results, Path], None]


def markdown(results: Results, form: Form) -> str:
    parts = [_machine(results), form.table(results.rows), _notes(results)]
    return "\n\n".join(filter(None, parts))


def write(results: Results, form: Form, folder: Path, figure: bool = True) -> list[str]:
    """Write <stem>_<device>.md, .json, .csv and, with matplotlib, .png; what to say about it."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{form.stem}_{'cuda' if 'gpu' in results.machine else 'cpu'}"
    text = markdown(results, form) + "\n"
    replace(stem.with_suffix(".md"), lambda path: path.write_text(text))
    replace(stem.with_suffix(".json"), lambda path: path.write_text(as_json(results)))
    replace(stem.with_suffix(".csv"), lambda path: path.write_text(as_csv(results.rows)))
    if not figure or not results.rows:
        return []
    try:
        import matplotlib

        matplotlib.use("Agg")
    except ImportError:
        return ["no PNG: matplotlib is not installed (pip install matplotlib)"]
    replace(stem.with_suffix(".png"), lambda path: form.draw(results, path))
    return [f"wrote {stem}.png, .md, .json, .csv"]


def replace(path: Path, write_to: Callable[[Path], Any]) -> None:
    """Write beside `path` under another name, then rename: a reader never sees half a file."""
    handle, name = tempfile.mkstemp(prefix=".", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    try:
        write_to(Path(name))
        os.chmod(name, 0o644)  # mkstemp's files are private
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def as_json(results: Results) -> str:
    return json.dumps(dataclasses.asdict(results), indent=1) + "\n"


def as_csv(rows: list[Row]) -> str:
    flat = [_flat(row) for row in rows]
    columns = list(dict.fromkeys(key for row in flat for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def draw(results: Results, path: Path) -> None:
    """Speedup of each case, with its spread and the bar that it must reach."""
    from matplotlib import pyplot

    rows = last(results.rows)[::-1]
    figure, axes = pyplot.subplots(figsize=(8, 1.2 + 0.35 * len(rows)), layout="constrained")
    for y, row in enumerate(rows):
        s = row.speedup
        error = [[max(0.0, s.median - s.low)], [max(0.0, s.high - s.median)]]
        met = all(bar["met"] for bar in row.bars)
        color = "tab:blue" if met else "tab:orange"
        axes.barh(y, s.median - 1, left=1, xerr=error, color=color)
        axes.annotate(f" {s.median:.2f}", (max(s.high, 1), y), va="center", fontsize=8)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.margins(x=0.1, y=0.02)
    axes.set_yticks(range(len(rows)), [f"{row.title}\n{row.direction}" for row in rows], fontsize=7)
    axes.set_xlabel("x faster than eager and torch.compile (orange: a bar is missed)")
    axes.set_title(place(results.machine), fontsize=9)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def place(machine: dict[str, Any]) -> str:
    """A figure's title: versions and hardware."""
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} threads"
    return f"ssl_fast {machine['ssl_fast']}, torch {machine['torch']}\n{where}"


def last(rows: list[Row]) -> list[Row]:
    """Of every case the direction that its bars are about: both, or forward alone."""
    return list({(row.title, row.device): row for row in rows}.values())


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _machine(results: Results) -> str:
    pairs = (f"{name} {value}" for name, value in results.machine.items() if value is not None)
    lines = [", ".join(pairs), *(f"**Warning:** {each}" for each in results.warnings)]
    return "\n\n".join(lines)


def _table(rows: list[Row]) -> str:
    if not rows:
        return ""
    rule = ("---", "---", *["---:"] * 8, "---", "---")
    lines = [_HEAD, rule, *map(_cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(row: Row) -> tuple[str, ...]:
    ms = row.milliseconds
    others = ", ".join(f"{name} {ms[name]:.3g}" for name in ms if name not in _FIXED)
    s = row.speedup
    return (
        row.title,
        row.direction,
        number(ms.get("eager")),
        number(ms.get("compile")),
        others or "-",
        number(ms["ours"]),
        f"{s.median:.2f} ({s.low:.2f}-{s.high:.2f})",
        f"{row.floor_percent:.0f} of {row.floor}",
        _megabytes(row.peak_bytes),
        _megabytes(row.kept_bytes),
        row.backend,
        "; ".join(map(_verdict, row.bars)) or "-",
    )


def _verdict(bar: dict[str, Any]) -> str:
    return f"{bar['text']}: {'met' if bar['met'] else 'missed'}, {bar['reached']}"


def _notes(results: Results) -> str:
    skipped: dict[str, list[str]] = {}
    for row in results.rows:
        for name, why in row.skipped.items():
            skipped.setdefault(f"{name} left out: {why}", []).append(row.title)
    lines = [f"- {why} ({_some(titles)})" for why, titles in skipped.items()]
    not_run: dict[str, list[str]] = {}
    for case, why in results.not_run.items():
        not_run.setdefault(why, []).append(case)
    lines += [f"- not run: {_some(cases)}: {why}" for why, cases in not_run.items()]
    lines += [f"- **failed**: {case}: {message}" for case, message in results.failures.items()]
    bars = [bar for row in results.rows for bar in row.bars]
    met = sum(bar["met"] for bar in bars)
    lines += [f"- bars: {met} of {len(bars)} met"] if bars else []
    return "\n".join(lines)


def _some(titles: list[str]) -> str:
    distinct = list(dict.fromkeys(titles))
    return ", ".join(distinct) if len(distinct) <= 3 else f"{len(distinct)} cases"


def _flat(row: Row) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in dataclasses.asdict(row).items():
        if key == "bars":
            flat["bar"] = "; ".join(f"{b['text']}: {b['reached']}" for b in value)
            flat["bars_met"] = all(b["met"] for b in value) if value else ""
        elif isinstance(value, dict):
            flat |= {f"{key}_{name.replace(' ', '_')}": each for name, each in value.items()}
        else:
            flat[key] = value
    return flat


def _megabytes(sizes: dict[str, int]) -> str:
    return f"{sizes['eager'] / 1e6:.3g} / {sizes['ours'] / 1e6:.3g}"


FULL = Form("bench", _table, draw)
