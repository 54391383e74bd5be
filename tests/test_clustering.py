"""Clustering metrics, NEMD, and the k-means of PCL."""

import numpy as np
import pytest
import torch
from checks import normal, same_bits, unit

from ssl_fast import metrics
from ssl_fast.functional import sinkhorn_distance

pytest.importorskip("sklearn", reason="pip install 'ssl_fast[train]'")


def blobs(spread: float = 0.05, each: int = 40, classes: int = 5, d: int = 8) -> tuple:
    """Rows around `classes` unit centres, and their labels, interleaved."""
    labels = torch.arange(classes).repeat(each)
    rows = unit(classes, d)[labels] + spread * normal(len(labels), d, seed=1)
    return rows, labels


def test_nemd_is_the_mean_over_pairs() -> None:
    """Scaled to the sphere, grouped by prototype, whatever their numbers are."""
    rows, labels = blobs(classes=3, each=9)
    names = torch.tensor([40, -2, 7])[labels]
    unit_rows = torch.nn.functional.normalize(rows, dim=1)
    clouds = [unit_rows[labels == k] for k in range(3)]
    pairs = [sinkhorn_distance(clouds[a], clouds[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    expected = float(torch.stack(pairs).mean())
    assert abs(metrics.nemd(rows, names) - expected) < 1e-6
    assert abs(metrics.nemd(rows * 7, names) - expected) < 1e-6


def test_nemd_against_pot() -> None:
    ot = pytest.importorskip("ot", reason="pip install POT")
    rows, labels = blobs(spread=0.3, classes=4, each=12, d=2)
    rows = torch.nn.functional.normalize(rows.double(), dim=1)
    clouds = [rows[labels == k].numpy() for k in range(4)]
    exact = [
        ot.emd2(ot.unif(12), ot.unif(12), ot.dist(clouds[a], clouds[b], metric="euclidean"))
        for a in range(4) for b in range(a)
    ]  # fmt: skip
    assert abs(metrics.nemd(rows, labels, epsilon=0.002, iterations=3000) - np.mean(exact)) < 3e-3
    assert abs(metrics.nemd(rows, labels) - np.mean(exact)) < 0.03


def test_nemd_grows_with_the_distance_of_prototypes() -> None:
    labels = torch.arange(10).repeat(30)
    angles = torch.arange(10)[labels] * (2 * torch.pi / 10) + 0.3 * normal(300)
    together = 0.1 * torch.arange(10)[labels] + 0.3 * normal(300)
    found = [metrics.nemd(torch.stack([a.cos(), a.sin()], 1), labels) for a in (together, angles)]
    assert found[0] < 0.6 < 1 < found[1] < 2


def test_nemd_of_few_points() -> None:
    rows, labels = blobs(classes=4, each=50)
    every = metrics.nemd(rows, labels)
    assert abs(metrics.nemd(rows, labels, points=10) - every) < 0.02
    assert metrics.nemd(rows, labels, points=1000) == every


@pytest.mark.parametrize(("call", "message"), [
    (lambda x: metrics.nemd(x, torch.zeros(6, dtype=torch.long)), "1 prototype.*at least 2"),
    (lambda x: metrics.nemd(x, torch.zeros(6)), "assignments must be a tensor of integers"),
    (lambda x: metrics.nemd(x, torch.arange(5)), "one number for each of the 6 rows"),
    (lambda x: metrics.nemd(x, torch.arange(6), points=0), "points must be an integer >= 1"),
    (lambda x: metrics.silhouette(x, torch.zeros(6)), "at least 2 classes"),
    (lambda x: metrics.kmeans_ari(x, torch.arange(6), clusters=7), "clusters must be between"),
    (lambda x: metrics.knn_accuracy(x, torch.arange(5), x, torch.arange(6)), "labels"),
    (lambda x: metrics.knn_accuracy(x, torch.arange(6), x, torch.arange(6), neighbours=0), ">= 1"),
])  # fmt: skip
def test_refusals(call, message) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call(unit(6, 3))


def test_silhouette_by_the_definition() -> None:
    rows, labels = blobs(spread=0.3, each=6, classes=3)
    x = torch.nn.functional.normalize(rows, dim=1).double()
    distances = torch.cdist(x, x)
    found = []
    for i, own in enumerate(labels.tolist()):
        means = [float(distances[i, labels == k].sum()) for k in range(3)]
        a, b = means[own] / 5, min(means[k] / 6 for k in range(3) if k != own)
        found.append((b - a) / max(a, b))
    mean, std = metrics.silhouette(rows, labels)
    assert abs(mean - np.mean(found)) < 1e-6 and abs(std - np.std(found)) < 1e-6


def test_ari() -> None:
    rows, labels = blobs()
    assert metrics.kmeans_ari(rows, labels) == 1.0
    assert abs(metrics.kmeans_ari(normal(200, 8), labels)) < 0.1
    assert metrics.kmeans_ari(rows.numpy(), labels.numpy(), clusters=2) < 0.9


@pytest.mark.parametrize("neighbours", [1, 5, 20])
def test_knn_is_scikit_learns(neighbours) -> None:
    from sklearn.neighbors import KNeighborsClassifier

    (train, labels), (test, truth) = blobs(0.5), blobs(0.6)
    train = train + 0.2 * normal(*train.shape, seed=5)
    expected = KNeighborsClassifier(neighbours).fit(train.numpy(), labels.numpy())
    ours = metrics.knn_accuracy(train, labels, test, truth, neighbours=neighbours, normalize=False)
    assert ours == expected.score(test.numpy(), truth.numpy())


def test_weighted_knn_by_the_formula() -> None:
    (train, labels), (test, truth) = blobs(0.5), blobs(0.6)
    train = train + 0.3 * normal(*train.shape, seed=5)
    a, b = (torch.nn.functional.normalize(x, dim=1) for x in (train, test))
    similar, nearest = (b @ a.T).topk(20)
    votes = torch.zeros(len(test), 5)
    votes.scatter_add_(1, labels[nearest], (similar / 0.07).exp())
    expected = float((votes.argmax(1) == truth).double().mean())
    options = {"neighbours": 20, "weighted": True}
    assert metrics.knn_accuracy(train, labels, test, truth, **options) == expected
    plain = metrics.knn_accuracy(train, labels, test, truth, neighbours=20)
    cold = metrics.knn_accuracy(train, labels, test, truth, **options, temperature=1e-6)
    one = metrics.knn_accuracy(train, labels, test, truth, neighbours=1)
    assert cold == one != plain


class TestKMeans:
    """Once an epoch, by faiss."""

    @pytest.fixture(autouse=True)
    def faiss(self):
        pytest.importorskip("faiss", reason="pip install faiss-cpu")

    def test_finds_the_classes(self) -> None:
        from ssl_fast.train.clustering import cluster

        rows, labels = blobs()
        first, second = cluster(rows, [5, 9], temperature=0.3, progress=False)
        assert metrics.kmeans_ari(first.centroids[first.index], labels) == 1.0
        for found, k in ((first, 5), (second, 9)):
            assert found.centroids.shape == (k, 8) and found.index.shape == (200,)
            torch.testing.assert_close(found.centroids.norm(dim=1), torch.ones(k))
            assert bool((found.concentration > 0).all())
            assert abs(float(found.concentration.mean()) - 0.3) < 1e-6
            assert found.index.dtype == torch.long and int(found.index.max()) < k

    def test_same_seed_same_bits(self) -> None:
        from ssl_fast.train.clustering import cluster

        rows = normal(500, 6)
        once, again, other = (cluster(rows, [20], seed=s, progress=False)[0] for s in (3, 3, 4))
        assert all(same_bits(a, b) for a, b in zip(once, again, strict=True))
        assert not same_bits(once.centroids, other.centroids)

    def test_empty_clusters_and_repeated_samples(self, capfd) -> None:
        """Five different rows in eight clusters."""
        from ssl_fast.train.clustering import cluster

        rows = unit(5, 3).repeat(8, 1)
        (found,) = cluster(rows, [8], temperature=0.2)
        assert bool(found.centroids.isfinite().all())
        assert bool((found.concentration > 0).all()) and bool(found.concentration.isfinite().all())
        assert len(found.index.unique()) <= 8

    def test_concentration_by_the_formula(self) -> None:
        from ssl_fast.train.clustering import concentrations

        distances = np.array([1.0, 2.0, 3.0, 0.5, 0.7, 9.0])
        index = np.array([0, 0, 0, 2, 2, 3])  # 1 is empty, 3 is a single sample
        phi = concentrations(distances, index, 5, 0.2)
        raw = np.array([2 / np.log(13), np.nan, 0.6 / np.log(12), np.nan, np.nan])
        raw[np.isnan(raw)] = np.nanmax(raw)
        raw = raw.clip(*np.percentile(raw, (10, 90)))
        np.testing.assert_allclose(phi, 0.2 * raw / raw.mean())

    @pytest.mark.parametrize(("rows", "counts", "message"), [
        (unit(6, 3), [7], "7 clusters of 6 samples"),
        (unit(6, 3), [0], "0 clusters of 6 samples"),
        (unit(6, 3) * float("nan"), [2], "NaN or infinity"),
        (unit(6, 3)[0], [2], "non-empty matrix"),
    ])  # fmt: skip
    def test_refusals(self, rows, counts, message) -> None:
        from ssl_fast.train.clustering import cluster

        with pytest.raises(ValueError, match=message):
            cluster(rows, counts, progress=False)


@pytest.mark.slow
def test_prototype_collapse_runs(tmp_path, capsys) -> None:
    """A tiny study: every file, a row for each method, and the claim with its verdict."""
    pytest.importorskip("faiss", reason="pip install faiss-cpu")
    from ssl_fast import cli

    folder = tmp_path / "run"
    options = ["--classes", "[3]", "--samples", "40", "--seeds", "1", "--steps", "10"]
    options += ["--batch", "16", "--ablation", "3", "--run_dir", str(folder)]
    assert cli.main(["experiment", "prototype-collapse", *options]) == 0
    table = (folder / "results.md").read_text()
    for name in ("PCL", "PAUC", "alpha alone", "beta alone", "gamma alone", "no term"):
        assert name in table
    assert "PAUC's NEMD is lower than PCL's with 3 classes" in table
    assert (folder / "circle.png").stat().st_size > 10_000
