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


def variance_hinge(z: Tensor, gamma: float = 1.0, eps: float = 1e-4) -> Tensor:
    """VICReg, Eq. 1: the mean hinge on the columns' unbiased standard deviations."""
    return torch.relu(gamma - (z.var(0) + eps).sqrt()).mean()


def covariance_penalty(z: Tensor) -> Tensor:
    """VICReg, Eq. 4: squared off-diagonals of the covariance matrix, over the width."""
    z = z - z.mean(0)
    c = z.T @ z / (len(z) - 1)
    return (c - torch.diag(c.diagonal())).square().sum() / z.shape[1]


def vicreg(z0: Tensor, z1: Tensor, gamma: float = 1.0, eps: float = 1e-4) -> Tensor:
    """(3,): mean squared error, half the sum of hinges, sum of penalties; over all positions."""
    views = z0, z1
    blocks = [z.flatten(1, -2).transpose(0, 1) if z.dim() > 2 else z[None] for z in views]
    return torch.stack([
        (z0 - z1).square().mean(),
        sum(variance_hinge(z.flatten(1), gamma, eps) for z in views) / 2,
        sum(torch.stack([covariance_penalty(b) for b in z]).mean() for z in blocks),
    ])  # fmt: skip


def barlow_twins(z0: Tensor, z1: Tensor, weight: float = 5e-3, eps: float = 1e-5) -> Tensor:
    """Zbontar et al., Eq. 1, on batch-normalised views."""
    views = ((z - z.mean(0)) / (z.var(0, correction=0) + eps).sqrt() for z in (z0, z1))
    a, b = views
    c = a.T @ b / len(a)
    off = c - torch.diag(c.diagonal())
    return (c.diagonal() - 1).square().sum() + weight * off.square().sum()


def tico(z0: Tensor, z1: Tensor, previous: Tensor, beta: float, rho: float) -> Tensor:
    """TiCo (Zhu et al. 2022), Eq. 8 with the moving second moment as a constant."""
    a, b = (torch.nn.functional.normalize(z) for z in (z0, z1))
    c = tico_moment(z0, previous, beta)
    return 1 - (a * b).sum(1).mean() + rho * ((a @ c) * a).sum(1).mean()


def tico_moment(z0: Tensor, previous: Tensor, beta: float) -> Tensor:
    a = torch.nn.functional.normalize(z0).detach()
    return beta * previous + (1 - beta) * (a.T @ a) / len(a)
