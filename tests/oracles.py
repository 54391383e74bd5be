"""The formulas as printed, in plain PyTorch: exact on float64, "PyTorch's own" on float32."""

import math

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


def prior_kl(
    logits: Tensor, prior: Tensor | None = None, temperature: float = 1.0, reverse: bool = False
) -> Tensor:
    """KL(mean softmax || prior), PMSN's Eq. 9; reverse: KL(prior || mean softmax)."""
    log_p = (logits / temperature).log_softmax(1).logsumexp(0) - math.log(len(logits))
    uniform = torch.full_like(log_p, 1 / len(log_p))
    prior = uniform if prior is None else prior.to(log_p)
    if reverse:
        return (prior.xlogy(prior) - prior * log_p).sum()
    return (log_p.exp() * (log_p - prior.log())).sum()


def msn_loss(
    anchors: Tensor,
    targets: Tensor,
    prototypes: Tensor,
    temperature: float = 0.1,
    sharpening: float = 0.25,
    prior: Tensor | None = None,
    prior_weight: float = 1.0,
    reverse: bool = False,
    sinkhorn_iterations: int = 0,
) -> Tensor:
    """MSN and PMSN as the papers have them: sharpened targets, cross-entropy, prior."""
    anchors, targets, prototypes = (
        x / x.norm(dim=1, keepdim=True).clamp_min(1e-12) for x in (anchors, targets, prototypes)
    )
    with torch.no_grad():
        p = (targets @ prototypes.T / temperature).softmax(1)
        q = p ** (1 / sharpening)
        q = q / q.sum(1, keepdim=True)
        if sinkhorn_iterations:
            q = balance(q, sinkhorn_iterations)
    logits = anchors @ prototypes.T
    views = len(anchors) // len(targets)
    entropy = cross_entropy(logits, q.repeat(views, 1), temperature)
    return entropy + prior_weight * prior_kl(logits, prior, temperature, reverse)


def multi_crop(
    students: list[Tensor], q: list[Tensor], prototypes: Tensor | None = None,
    temperature: float = 0.1, skip_same: bool = True,
) -> Tensor:  # fmt: skip
    """Mean over pairs of crops of the cross-entropy, without those of one and the same crop."""
    logits = students if prototypes is None else [x @ prototypes.T for x in students]
    terms = [
        cross_entropy(logits[s], q[t], temperature)
        for t in range(len(q))
        for s in range(len(students))
        if not (skip_same and s == t)
    ]
    unused = 0 * sum(x.sum() for x in students)  # a crop may have no teacher but itself
    return torch.stack(terms).mean() + unused


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


def swav_loss(
    crops: list[Tensor],
    prototypes: Tensor,
    temperature: float = 0.1,
    epsilon: float = 0.05,
    iterations: int = 3,
    prior: Tensor | None = None,
    queue: list[Tensor] | None = None,
    assign_crops: tuple[int, ...] = (0, 1),
) -> Tensor:
    """SwAV, section 3.1: the mean over assigned crops of the mean over the other crops."""
    total = 0.0
    for i, t in enumerate(assign_crops):
        z = crops[t] if queue is None else torch.cat([queue[i].to(crops[t]), crops[t]])
        q = sinkhorn((z @ prototypes.T).detach(), epsilon, iterations, prior)[-len(crops[t]) :]
        others = [x for v, x in enumerate(crops) if v != t]
        terms = [cross_entropy(x @ prototypes.T, q, temperature) for x in others]
        total = total + sum(terms) / len(others)
    return total / len(assign_crops)


def sorted_prior(scores: Tensor, prior: Tensor, epsilon: float) -> Tensor:
    """The k-th largest share to the prototype with the k-th largest mass."""
    mass = (scores.double() / epsilon).softmax(1).sum(0).tolist()
    order = sorted(range(len(mass)), key=lambda k: -mass[k])  # stable
    shares = sorted(prior.tolist(), reverse=True)
    return torch.tensor([shares[order.index(k)] for k in range(len(mass))]).to(prior)


def dino_loss(
    students: list[Tensor],
    teachers: list[Tensor],
    temperature: float = 0.1,
    teacher_temperature: float = 0.04,
    center: Tensor | None = None,
) -> Tensor:
    """DINO, algorithm 1, on logits: the mean over pairs of different crops."""
    q = [centred(t.detach(), teacher_temperature, center) for t in teachers]
    return multi_crop(students, q, None, temperature)


def ibot_loss(student: Tensor, q: Tensor, mask: Tensor, temperature: float = 0.1) -> Tensor:
    """iBOT: the mean over masked tokens of an image, then over images; q (M, K) as it is."""
    tokens = cross_entropy(student, q, temperature, reduction="none")
    images = tokens.split(mask.flatten(1).sum(1).tolist())
    return sum(image.mean() for image in images if len(image)) / len(mask)


def koleo_loss(x: Tensor, eps: float = 1e-8, p: float = 2.0) -> Tensor:
    """-mean log distance to the nearest row, on the sphere."""
    z = torch.nn.functional.normalize(x, dim=1, eps=eps)
    cosines = z.detach() @ z.detach().T - 9 * torch.eye(len(z)).to(z)
    distances = torch.nn.functional.pairwise_distance(z, z[cosines.argmax(1)], p, eps)
    return -(distances + eps).log().mean()


def mean_entropy(anchors: Tensor, prototypes: Tensor, temperature: float = 0.1) -> Tensor:
    """MSN's third term: the mean entropy of softmax(cosines / temperature)."""
    a, c = (torch.nn.functional.normalize(x, dim=1) for x in (anchors, prototypes))
    log_p = (a @ c.T / temperature).log_softmax(1)
    return -(log_p.exp() * log_p).sum(1).mean()


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


def nt_xent(views: list[Tensor], temperature: float, normalize: bool = True) -> Tensor:
    """SimCLR, Eq. 1; of more than two views the positives are summed inside the logarithm."""
    samples, count = len(views[0]), len(views)
    z = _unit(torch.cat(views), normalize)
    same = torch.arange(samples).repeat(count)
    itself = torch.eye(len(z), dtype=torch.bool)
    logits = (z @ z.T / temperature).masked_fill(itself, -torch.inf)
    positive = (same[:, None] == same) & ~itself
    positives = logits.masked_fill(~positive, -torch.inf).logsumexp(1)
    return (logits.logsumexp(1) - positives).mean()


def decoupled(z0: Tensor, z1: Tensor, temperature: float, weights: Tensor | None = None) -> Tensor:
    """DCL, Eq. 6, mean over samples and views; weights (N, 2)."""
    samples = len(z0)
    z = _unit(torch.cat([z0, z1]), True)
    logits = z @ z.T / temperature
    same = torch.arange(samples).repeat(2)
    positives = logits.diagonal(samples).repeat(2)
    if weights is not None:
        positives = positives * weights.T.flatten().to(positives)
    return (logits.masked_fill(same[:, None] == same, -torch.inf).logsumexp(1) - positives).mean()


def one_of_many(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None,
    temperature: float,
    normalize: bool = True,
    reduction: str = "mean",
) -> Tensor:
    """InfoNCE: the key is class i of all keys, or class 0 of [key, negatives]."""
    query, key = _unit(query, normalize), _unit(key, normalize)
    if negatives is None:
        logits, labels = query @ key.T, torch.arange(len(query))
    else:
        positive = (query * key).sum(1, keepdim=True)
        logits = torch.cat([positive, query @ _unit(negatives, normalize).T], 1)
        labels = torch.zeros(len(query), dtype=torch.long)
    return torch.nn.functional.cross_entropy(logits / temperature, labels, reduction=reduction)


def proto_nce(
    z: Tensor,
    centroids: Tensor,
    concentration: Tensor,
    index: Tensor,
    negatives: Tensor | None = None,
    reduction: str = "mean",
    ignore: bool = False,
) -> Tensor:
    """PCL, Eq. 11, one clustering: class 0 of [own, negatives], every column at its own scale."""
    logits = z @ centroids.T / concentration.to(z)
    if negatives is None:
        return torch.nn.functional.cross_entropy(logits, index, reduction=reduction)
    others = logits[:, negatives]
    if ignore:
        others = others.masked_fill(index[:, None] == negatives, -torch.inf)
    own = logits.gather(1, index[:, None])
    labels = torch.zeros(len(z), dtype=torch.long)
    logits = torch.cat([own, others], 1)
    return torch.nn.functional.cross_entropy(logits, labels, reduction=reduction)


def _unit(x: Tensor, normalize: bool) -> Tensor:
    return torch.nn.functional.normalize(x, dim=1) if normalize else x


def sinkhorn_plan(x: Tensor, y: Tensor, epsilon: float, p: int, iterations: int) -> Tensor:
    """Cuturi's plan (N, M) for uniform weights, by that many steps in the log domain."""
    costs = (x[:, None] - y[None]).square().sum(2)
    costs = costs.clamp_min(1e-300 if x.dtype == torch.float64 else 1e-35).sqrt().pow(p)
    a, b = -torch.tensor(float(len(x))).to(x).log(), -torch.tensor(float(len(y))).to(x).log()
    g = torch.zeros_like(costs[0])
    for _ in range(iterations):
        f = -(g - costs / epsilon + b).logsumexp(1)
        g = -(f[:, None] - costs / epsilon + a).logsumexp(0)
    return (f[:, None] + g - costs / epsilon + a + b).exp()


def sinkhorn_distance(
    x: Tensor, y: Tensor, epsilon: float = 0.05, p: int = 1, iterations: int = 500
) -> Tensor:
    """<P, C>, differentiated through the steps."""
    squares = (x[:, None] - y[None]).square().sum(2)
    costs = squares if p == 2 else squares.clamp_min(torch.finfo(x.dtype).tiny).sqrt()
    return (sinkhorn_plan(x, y, epsilon, p, iterations) * costs).sum()
