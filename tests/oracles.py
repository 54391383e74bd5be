"""The formulas as printed, in plain PyTorch: exact on float64, "PyTorch's own" on float32."""

import torch
from torch import Tensor


def balance(q: Tensor, iterations: int, prior: Tensor | None = None) -> Tensor:
    """SwAV's listing (Caron et al. 2020) on positive numbers (N, K): prototypes, then samples."""
    q = q.T / q.sum()  # (K, N)
    prototypes, samples = q.shape
    marginal = 1 / prototypes if prior is None else prior.to(q)[:, None]
    for _ in range(iterations):
        q = q / q.sum(1, keepdim=True) * marginal
        q = q / q.sum(0) / samples
    return (q * samples).T


def swav(
    scores: Tensor, epsilon: float = 0.05, iterations: int = 3, prior: Tensor | None = None
) -> Tensor:
    """Sinkhorn-Knopp of exp(scores / epsilon), (N, K); overflows as the listing does."""
    return balance((scores / epsilon).exp(), iterations, prior)


def msn(scores: Tensor, temperature: float, sharpening: float, iterations: int) -> Tensor:
    """MSN's targets: softmax, sharpened, normalised, then Sinkhorn on those probabilities."""
    p = (scores / temperature).softmax(1) ** (1 / sharpening)
    return balance(p / p.sum(1, keepdim=True), iterations)


def sinkhorn(
    scores: Tensor,
    epsilon: float = 0.05,
    iterations: int = 3,
    prior: Tensor | None = None,
    start: str = "zero",
) -> Tensor:
    """`swav` in the log domain (math.md, section 2): for scores whose exponentials overflow."""
    s = scores / epsilon
    row = -s.logsumexp(1) if start == "softmax" else torch.zeros_like(s[:, 0])
    log_prior = 0.0 if prior is None else prior.to(s).log()
    for _ in range(iterations):
        col = log_prior - (s + row[:, None]).logsumexp(0)
        row = -(s + col).logsumexp(1)
    return (s + row[:, None] + col).exp()


def centred(scores: Tensor, temperature: float, center: Tensor | None = None) -> Tensor:
    """DINO's teacher, algorithm 1."""
    return ((scores if center is None else scores - center.to(scores)) / temperature).softmax(1)


def cross_entropy(
    logits: Tensor,
    q: Tensor,
    temperature: float = 1.0,
    symmetric: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """-sum_k q_ik log softmax(logits / temperature)_ik; symmetric: ReSA, Eq. 2."""
    logits = logits / temperature
    rows = -(q * logits.log_softmax(1)).sum(1)
    if reduction == "none":
        return rows
    total = rows.sum()
    if symmetric:
        total = (total - (q * logits.log_softmax(0)).sum()) / 2
    return total / len(logits) if reduction == "mean" else total


def linear_cross_entropy(x: Tensor, weight: Tensor, q: Tensor, **options) -> Tensor:
    return cross_entropy(x @ weight.T, q, **options)


def info_nce(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    """CLIP's form: the mean of both directions' cross-entropies with the diagonal as class."""
    logits, labels = x @ y.T / temperature, torch.arange(len(x))
    entropy = torch.nn.functional.cross_entropy
    return (entropy(logits, labels) + entropy(logits.T, labels)) / 2


def resa(
    embeddings: list[Tensor],
    momentum: list[Tensor],
    h: Tensor,
    h_momentum: Tensor,
    temperature: float = 0.4,
    epsilon: float = 0.05,
    iterations: int = 3,
    symmetric: bool = True,
) -> Tensor:
    """Eq. 2 over all pairs of different views; rows alone is the released code."""
    assignment = sinkhorn(h.detach() @ h_momentum.detach().T, epsilon, iterations)
    terms = []
    for q, online in enumerate(embeddings):
        for v, target in enumerate(momentum):
            if q != v:
                logits = online @ target.T
                terms.append(cross_entropy(logits, assignment, temperature, symmetric))
    return torch.stack(terms).mean()


def nuclear_norm(z: Tensor, center: bool = False) -> Tensor:
    return torch.linalg.svdvals(z - z.mean(0) if center else z).sum()


def wasserstein(z: Tensor) -> Tensor:
    """Fang et al. 2024 as printed, by the eigenvalues of the covariance (WassersteinSSL a16a931).

    No N < D, no repeated eigenvalues at zero: there the square root has no derivative.
    """
    mean = z.mean(0)
    covariance = (z - mean).T @ (z - mean) / len(z)
    roots = torch.linalg.eigvalsh(covariance).clamp(min=0).sqrt().sum()
    return (mean @ mean + 1 + covariance.trace() - 2 / z.shape[1] ** 0.5 * roots).sqrt()


def wasserstein_svd(z: Tensor) -> Tensor:
    """The same by singular values, for any shape of full rank."""
    mean = z.mean(0)
    x = z - mean
    trace = x.square().sum() / len(z)
    roots = torch.linalg.svdvals(x).sum() / len(z) ** 0.5
    return (mean @ mean + 1 + trace - 2 / z.shape[1] ** 0.5 * roots).sqrt()


def spectral_gradient(z: Tensor, center: bool, eps: float, distance: bool) -> Tensor:
    """The gradient by SVD in float64, null directions (s <= eps * s_1) get 0."""
    z = z.double()
    rows, width = z.shape
    mean = z.mean(0)
    u, s, vh = torch.linalg.svd(z - mean if center else z, full_matrices=False)
    polar = (u * (s > eps * s.max())) @ vh
    if not distance:
        return polar
    return (z / rows - polar / (rows * width) ** 0.5) / wasserstein_svd(z)
