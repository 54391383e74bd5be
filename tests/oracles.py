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


def gaussian_uniformity(x: Tensor, t: float = 2.0) -> Tensor:
    """Wang and Isola's listing, in the log domain: distances of 40 are no infinity."""
    squares = torch.pdist(x).pow(2)
    return squares.mul(-t).logsumexp(0) - torch.tensor(len(squares)).to(x).log()


def prototype_uniformity(c: Tensor, t: float = 2.0) -> Tensor:
    """PAUC, Eq. 5."""
    return torch.pdist(c).pow(2).mul(-t).exp().mean()


def alignment(x: Tensor, y: Tensor, alpha: float = 2.0) -> Tensor:
    """Wang and Isola's listing."""
    return (x - y).norm(p=2, dim=1).pow(alpha).mean()


def prototype_correlation(c: Tensor, temperature: float = 1.0) -> Tensor:
    """PAUC, Eq. 6, every pair on its own."""
    logs = (c / temperature).log_softmax(1)
    pairs = (logs.exp()[:, None] * (logs[None] - logs[:, None])).sum(2)
    return pairs.sum() / (len(c) * (len(c) - 1))
