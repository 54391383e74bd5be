"""What a run leaves behind: a table (terminal, Markdown, JSON) and three pictures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.preprocessing import normalize

from . import cost
from .evaluate import Features
from .files import whole_file, write_text
from .labels import evenly
from .tables import Cell, Percent, Table

COLUMNS = {"knn": "5-nn", "probe": "linear probe", "ari": "ARI", "silhouette": "silhouette"}
SHOWN = 1000  # points of a scatter, rows of an assignment matrix

Scores = dict[str, dict[str, float]]  # features -> measure -> value


def table(scores: Scores, title: str) -> Table:
    rows: list[list[Cell]] = [[features, *cells(row)] for features, row in scores.items()]
    return Table(title, ["features", *COLUMNS.values()], rows, digits=".3f")


def cells(row: dict[str, float]) -> list[float]:
    """The columns' values; accuracies are read as percentages."""
    return [Percent(row[k]) if k in ("knn", "probe") else row[k] for k in COLUMNS]


def write_results(run: Path, scores: Scores, facts: dict[str, Any], history: list[dict]) -> None:
    facts = facts | {"scores": scores, "history": history}
    write_text(run / "results.json", json.dumps(facts, indent=2) + "\n")
    gain = 100 * (scores["encodings"]["knn"] - scores["untrained encodings"]["knn"])
    title = (
        f"{facts['method']} on {facts['data']}, seed {facts['seed']}: k-nn {gain:+.1f} points over "
        f"the untrained encoder, {facts['seconds']:.0f} s of training"
    )
    tables = [table(scores, title), cost.table(facts)]
    write_text(run / "results.md", "\n".join(found.markdown() for found in tables))
    for found in tables:
        Console().print(found.terminal())


def draw_curves(path: Path, history: list[dict], scores: Scores) -> None:
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3)
    epochs = [row["epoch"] for row in history]
    loss.plot(epochs, [row["loss"] for row in history])
    rate.plot(epochs, [row["lr"] for row in history])
    measured = [row for row in history if "knn" in row]
    accuracy.plot([r["epoch"] for r in measured], [r["knn"] for r in measured], label="encodings")
    for name, style in (("raw pixels", "--"), ("untrained encodings", ":")):
        accuracy.axhline(scores[name]["knn"], color="gray", linestyle=style, label=name)
    accuracy.legend()
    for axes, name in ((loss, "loss"), (accuracy, "k-nn accuracy"), (rate, "learning rate")):
        axes.set(xlabel="epoch", title=name)
        axes.grid(alpha=0.3)
    save(figure, path)


def draw_scatter(path: Path, before: Features, after: Features) -> None:
    """t-SNE of the test images' encodings, from 50 principal components."""
    figure = Figure(figsize=(12, 6), layout="constrained")
    for axes, f, title in zip(
        figure.subplots(1, 2), (before, after), ("start", "end"), strict=True
    ):
        keep = evenly(len(f.test), SHOWN)
        rows, labels = normalize(f.test[keep]), f.test_labels[keep]
        rows = PCA(min(50, *rows.shape), random_state=0).fit_transform(rows)
        points = TSNE(perplexity=min(30, len(rows) / 4), init="pca", random_state=0)
        x, y = points.fit_transform(rows).T
        dots = axes.scatter(
            x, y, c=labels, cmap="tab10" if labels.max() < 10 else "nipy_spectral", s=14
        )
        axes.set(xticks=[], yticks=[], title=f"encodings of test images, {title} (t-SNE)")
    if labels.max() < 10:
        figure.legend(*dots.legend_elements(), title="class", loc="outside right center")
    save(figure, path)


def draw_assignment(path: Path, before: Features, after: Features, epsilon: float) -> None:
    """Sinkhorn(h h^T) of test images sorted by class: block-diagonal where classes cluster."""
    from ..functional import Assignment

    figure = Figure(figsize=(12, 6), layout="constrained")
    for axes, f, title in zip(
        figure.subplots(1, 2), (before, after), ("start", "end"), strict=True
    ):
        keep = evenly(len(f.test), SHOWN)
        order = keep[np.argsort(f.test_labels[keep], kind="stable")]
        h = torch.from_numpy(normalize(f.test[order]))
        share = Assignment.sinkhorn(h @ h.T, epsilon=epsilon).dense().numpy()
        labels = f.test_labels[order]
        same = (share * (labels[:, None] == labels)).sum(1).mean()
        shown = axes.imshow(share, cmap="magma", vmin=0, vmax=np.quantile(share, 0.995))
        edges = np.flatnonzero(np.diff(labels)) + 0.5
        ticks = (np.r_[-0.5, edges] + np.r_[edges, len(labels) - 0.5]) / 2
        axes.set(title=f"assignment at the {title}: {same:.0%} within the class")
        axes.set_xticks(ticks, np.unique(labels))
        axes.set_yticks(ticks, np.unique(labels))
        figure.colorbar(shown, ax=axes, shrink=0.7)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
