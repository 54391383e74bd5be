"""What the uniform-prior paper proves (Assran et al. 2023, sections 3 and C), in float64.

Its printed constants are off in three places; each test shows the right one and that the printed
one fails.
"""

import itertools
import math

import pytest
import torch
from checks import assert_relative, error, normal, unit
from torch import Tensor

from ssl_fast.functional import Assignment, msn, sinkhorn

DOUBLE = torch.float64


def explicit(x: Tensor, parts: list[list[int]]) -> Tensor:
    """Eq. 1: squared distances to the means of the clusters."""
    return sum((x[part] - x[part].mean(0)).square().sum() for part in parts if part)


def implicit(x: Tensor, parts: list[list[int]], factor: float) -> Tensor:
    """Eq. 2's right side: squared distances of all pairs of a cluster, without any mean."""
    pairs = torch.cdist(x, x).square()
    return sum(factor * pairs[part][:, part].sum() / len(part) for part in parts if part)


def partitions(n: int, k: int) -> list[list[list[int]]]:
    """All K^N memberships P in {0, 1}^(N x K) with P 1 = 1, as lists of rows."""
    return [
        [[i for i in range(n) if label[i] == c] for c in range(k)]
        for label in itertools.product(range(k), repeat=n)
    ]


@pytest.mark.parametrize("seed", range(3))
def test_explicit_is_implicit(seed) -> None:
    """Eq. 2 for every partition of 7 points into at most 3 clusters; Eq. 10 lacks the half."""
    x = normal(7, 2, dtype=DOUBLE, seed=seed)
    for parts in partitions(7, 3)[::13]:
        left = explicit(x, parts)
        assert_relative(implicit(x, parts, 0.5), left, 1e-12)
        assert_relative(implicit(x, parts, 1.0), 2 * left, 1e-12)  # as Eq. 10 prints it


def test_same_global_optimum() -> None:
    """Proposition 1, by enumeration: centroids and memberships reach one minimum, at one place."""
    x = normal(7, 2, dtype=DOUBLE)
    every = partitions(7, 3)
    by_membership = min(every, key=lambda parts: float(implicit(x, parts, 0.5)))
    # The optimal centroids are the means of some partition: enumerate those, nearest ones count.
    means = [torch.stack([x[part].mean(0) for part in parts]) for parts in every if all(parts)]
    by_centroids = min(means, key=lambda mu: float(radial(x, mu)))
    assert_relative(radial(x, by_centroids), implicit(x, by_membership, 0.5), 1e-12)
    nearest = torch.cdist(x, by_centroids).argmin(1).tolist()
    clusters = {tuple(i for i in range(7) if nearest[i] == c) for c in range(3)}
    assert clusters == {tuple(part) for part in by_membership}


def radial(x: Tensor, centroids: Tensor) -> Tensor:
    """Eq. 10's left side."""
    return torch.cdist(x, centroids).square().amin(1).sum()


def mixture(k: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    """Means (k, d), covariances (k, d, d), prior (k,)."""
    root = 0.2 * normal(k, d, d, dtype=DOUBLE, seed=7) + torch.eye(d, dtype=DOUBLE)
    prior = normal(k, dtype=DOUBLE, seed=8).softmax(0)
    return normal(k, d, dtype=DOUBLE, seed=9), root @ root.mT, prior


def log_densities(x: Tensor, means: Tensor, covariances: Tensor) -> Tensor:
    """log N(x_i; mu_k, Sigma_k), (N, K)."""
    normals = torch.distributions.MultivariateNormal(means, covariances)
    return normals.log_prob(x[:, None])


def test_posterior(backend) -> None:
    """Below Eq. 4: softmax(W'x + log prior - |x|^2/2 - diag(W'W)/2) is the Gaussian mixture's.

    As an assignment: temperature 1, centre |mu_k|^2/2 - log prior_k; |x|^2 cancels.
    """
    x = normal(50, 3, dtype=DOUBLE)
    means, _, prior = mixture(5, 3)
    joint = log_densities(x, means, torch.eye(3, dtype=DOUBLE)) + prior.log()
    center = means.square().sum(1) / 2 - prior.log()
    for scores in ((x, means), x @ means.T):
        p = Assignment.softmax(scores, temperature=1.0, center=center).dense()
        assert error(p, joint.softmax(1)) < 1e-12


def test_free_energy() -> None:
    """Eq. 4 at the posterior is the negative log-likelihood, with half the log det of each
    sample's clusters; N sum_k log det, as printed, is not the bound's."""
    x = normal(50, 3, dtype=DOUBLE)
    means, covariances, prior = mixture(5, 3)
    joint = log_densities(x, means, covariances) + prior.log()
    p = joint.softmax(1)
    difference = x[:, None] - means
    mahalanobis = torch.einsum("nkd,kde,nke->nk", difference, covariances.inverse(), difference)
    divergence = p.xlogy(p / prior).sum()
    fixed = (p * mahalanobis).sum() / 2 + divergence + 50 * 3 / 2 * math.log(2 * math.pi)
    likelihood = -joint.logsumexp(1).sum()
    assert_relative(fixed + (p * covariances.logdet()).sum() / 2, likelihood, 1e-12)
    assert error(fixed + 50 * covariances.logdet().sum(), likelihood) > 1


def test_free_energy_on_the_sphere() -> None:
    """Eq. 5: uniform prior, Sigma = I, unit norms: the posterior is softmax(W'x) alone."""
    x, means = unit(50, 4, dtype=DOUBLE), unit(6, 4, dtype=DOUBLE, seed=1)
    p = Assignment.softmax((x, means), temperature=1.0).dense()
    distances = torch.cdist(x, means).square()
    eq5 = (p * distances).sum() / 2 + (p * p.log()).sum()
    joint = log_densities(x, means, torch.eye(4, dtype=DOUBLE)) - math.log(6)
    constant = 50 * (2 * math.log(2 * math.pi) + math.log(6))
    assert_relative(eq5 + constant, -joint.logsumexp(1).sum(), 1e-12)


def test_msn_is_equation_6(backend) -> None:
    """The loss is mean H(p+, p) - lambda H(mean p), and lambda log K."""
    a, t, c = unit(12, 4, dtype=DOUBLE), unit(12, 4, dtype=DOUBLE, seed=1), unit(6, 4, dtype=DOUBLE)
    p, p_plus = (a @ c.T / 0.1).softmax(1), (t @ c.T / 0.025).softmax(1)
    mean = p.mean(0)
    eq6 = -(p_plus * p.log()).sum(1).mean() + 3 * (mean * mean.log()).sum()
    assert_relative(msn(a, t, c, prior_weight=3.0), eq6 + 3 * math.log(6), 1e-12)


def test_zero_temperature(backend) -> None:
    """C.3: sigma MSN, with lambda / sigma, tends to a constrained K-means as sigma tends to 0:

        1/N sum_n (|x_n - mu_k(n)|^2 - min_k |x_n - mu_k|^2) / 2 + lambda KL(N_k / N || prior)

    k(n) is the positive view's cluster, N_k counts the views x_n. The print lacks the half, and
    has sigma+ >> sigma, where the positives' targets would stay soft: it means <<.
    """
    a = unit(40, 3, dtype=DOUBLE)
    t = torch.nn.functional.normalize(a + 0.8 * unit(40, 3, dtype=DOUBLE, seed=1), dim=1)
    c = unit(5, 3, dtype=DOUBLE, seed=2)
    prior = torch.arange(1, 6, dtype=DOUBLE).reciprocal()
    prior /= prior.sum()
    distances = torch.cdist(a, c).square()
    margin = distances.gather(1, torch.cdist(t, c).argmin(1)[:, None])[:, 0] - distances.amin(1)
    shares = torch.bincount(distances.argmin(1), minlength=5).double() / 40
    constraint = 2 * (shares.xlogy(shares / prior)).sum()
    limit = margin.mean() / 2 + constraint
    assert float(margin.mean()) > 0.05  # views do disagree here

    def scaled(sigma: float, sharpening: float) -> Tensor:
        loss = msn(a, t, c, temperature=sigma, sharpening=sharpening, prior=prior,
                   prior_weight=2 / sigma)  # fmt: skip
        return sigma * loss

    gaps = [error(scaled(sigma, 0.1), limit) for sigma in (0.1, 0.01, 0.001, 1e-4)]
    assert max(gaps) < 0.1 and gaps[2] < 0.01 and gaps[3] < 1e-9, gaps
    assert error(scaled(1e-4, 0.1), margin.mean() + constraint) > 0.02  # as printed
    assert error(scaled(1e-4, 1e4), limit) > 0.02  # sigma+ = 1, far above sigma


def test_empty_cluster_in_the_limit(backend) -> None:
    """u log u -> 0: a prototype that nobody picks adds nothing, not a NaN."""
    x = unit(9, 3, dtype=DOUBLE).abs()
    c = torch.cat([unit(4, 3, dtype=DOUBLE, seed=2).abs(), -torch.ones(1, 3, dtype=DOUBLE)])
    shares = torch.bincount((x @ torch.nn.functional.normalize(c, dim=1).T).argmax(1), minlength=5)
    shares = shares.double() / 9
    assert shares[-1] == 0
    limit = shares.xlogy(5 * shares).sum()
    sigma = 1e-3
    assert error(sigma * msn(x, x, c, temperature=sigma, prior_weight=1 / sigma), limit) < 1e-2


@pytest.mark.parametrize("sizes", [(2, 2, 2), (3, 2, 1), (4, 1, 1)], ids=str)
def test_sinkhorn_constrains_cluster_sizes(backend, sizes) -> None:
    """Eqs. 7 and 8: as epsilon tends to 0 Sinkhorn is K-means with |X_k| = N_k given.

    Equal sizes are SwAV's; others are what a prior asks for. The optimum is by enumeration.
    """
    x, mu = unit(6, 3, dtype=DOUBLE, seed=3), unit(3, 3, dtype=DOUBLE, seed=4)
    distances = torch.cdist(x, mu).square()
    labels = [k for k, size in enumerate(sizes) for _ in range(size)]
    best = min(
        set(itertools.permutations(labels)),
        key=lambda label: float(distances[range(6), list(label)].sum()),
    )
    prior = torch.tensor(sizes, dtype=DOUBLE) / 6
    q = sinkhorn(x @ mu.T, epsilon=2e-3, iterations=3000, prior=prior)
    assert q.argmax(1).tolist() == list(best)
    assert error(q.sum(0), prior * 6) < 1e-3
