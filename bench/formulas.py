"""The formulas that people write for the losses which have no benchmark of their own."""

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, mse_loss, normalize

from .bench_uniformity import eager as uniformity
from .cases import full


def dcl(z0: Tensor, z1: Tensor, weights: Tensor | None = None, temperature: float = 0.1) -> Tensor:
    """DCL, Eq. 6: NT-Xent without the positive in the denominator."""
    z = normalize(full(torch.cat([z0, z1])), dim=1)
    rows = len(z0)
    logits = z @ z.t() / temperature
    positives = logits.diagonal(rows).repeat(2)
    if weights is not None:
        positives = positives * weights.repeat(2)
    same = torch.eye(rows, dtype=torch.bool, device=z.device).repeat(2, 2)
    return (logits.masked_fill(same, -torch.inf).logsumexp(1) - positives).mean()


def dclw(z0: Tensor, z1: Tensor, sigma: float = 0.5) -> Tensor:
    with torch.no_grad():
        cosines = cosine_similarity(full(z0), full(z1))
        weights = 2 - len(z0) * (cosines / sigma).softmax(0)
    return dcl(z0, z1, weights)


def byol(p0: Tensor, p1: Tensor, z0: Tensor, z1: Tensor) -> Tensor:
    return 4 + 4 * simsiam(p0, p1, z0, z1)


def simsiam(p0: Tensor, p1: Tensor, z0: Tensor, z1: Tensor) -> Tensor:
    p0, p1, z0, z1 = full(p0), full(p1), full(z0), full(z1)
    return -(cosine_similarity(p0, z1).mean() + cosine_similarity(p1, z0).mean()) / 2


def nnclr(p0: Tensor, p1: Tensor, z0: Tensor, z1: Tensor, queue: Tensor) -> Tensor:
    """solo-learn's: predictions of the batch are the negatives."""
    temperature, terms = 0.1, []
    for z, p in ((z0, p1), (z1, p0)):
        nearest = queue[(normalize(z, dim=1) @ queue.t()).argmax(1)]
        logits = normalize(nearest, dim=1) @ normalize(p, dim=1).t() / temperature
        terms.append(cross_entropy(full(logits), torch.arange(len(z), device=z.device)))
    return (terms[0] + terms[1]) / 2


def align_uniform(z0: Tensor, z1: Tensor) -> Tensor:
    x, y = normalize(full(z0), dim=1), normalize(full(z1), dim=1)
    return (x - y).norm(dim=1).square().mean() + (uniformity(x) + uniformity(y)) / 2


def koleo(x: Tensor, eps: float = 1e-8) -> Tensor:
    z = normalize(full(x), dim=1, eps=eps)
    with torch.no_grad():
        nearest = (z @ z.t()).fill_diagonal_(-2).argmax(1)
    distances = torch.nn.functional.pairwise_distance(z, z[nearest], eps=eps)
    return -(distances + eps).log().mean()


def ibot(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """DINOv2's, with a centre of zero."""
    q = torch.softmax(full(teacher) / 0.04, 1)
    entropy = -(q * torch.log_softmax(full(student) / 0.1, 1)).sum(1)
    weights = (1 / mask.sum(1, keepdim=True).clamp(min=1)).expand_as(mask)[mask]
    return (entropy * weights).sum() / len(mask)


def tico(z0: Tensor, z1: Tensor) -> Tensor:
    """The first step, when the second moment is the batch's."""
    a, b = normalize(full(z0), dim=1), normalize(full(z1), dim=1)
    moment = (a.t() @ a).detach() * (0.1 / len(a))
    return 1 - (a * b).sum(1).mean() + 8 * ((a @ moment) * a).sum(1).mean()


def proto_nce(
    query: Tensor, key: Tensor, centroids: Tensor, concentration: Tensor, index: Tensor
) -> Tensor:
    """InfoNCE in the batch, and the prototypes of all rows as classes."""
    temperature, labels = 0.2, torch.arange(len(query), device=query.device)
    query, key = normalize(full(query), dim=1), normalize(full(key), dim=1)
    instances = cross_entropy(query @ key.t() / temperature, labels)
    logits = query @ full(centroids)[index].t() / concentration[index]
    return 2 * temperature * instances + cross_entropy(logits, labels)


def pauc(
    query: Tensor, key: Tensor, centroids: Tensor, concentration: Tensor, index: Tensor
) -> Tensor:
    """The clusters take turns along the batch, so that their means are a reshape away."""
    count = len(centroids)
    p, q = (
        normalize(normalize(full(x), dim=1).view(-1, count, x.shape[1]).sum(0), dim=1)
        for x in (query, key)
    )
    aligned = (p[index] - q[index]).norm(dim=1).square().mean()
    uniform = torch.pdist(p).square().mul(-2).exp().mean()
    logs = p.log_softmax(1)
    share = logs.exp()
    apart = (share.sum(0) @ logs.sum(0) - count * (share * logs).sum()) / (count * (count - 1))
    terms = aligned + uniform + apart
    return proto_nce(query, key, centroids, concentration, index) + terms


def vicreg(z0: Tensor, z1: Tensor) -> Tensor:
    """With half the weight on the covariances, as VICRegL has it."""
    terms = [25 * mse_loss(z0, z1)]
    for z in (z0, z1):
        terms.append(12.5 * torch.relu(1 - (z.var(0) + 1e-4).sqrt()).mean())
        c = torch.cov(z.t())
        terms.append(0.5 * (c - c.diagonal().diag()).square().sum() / len(c))
    return torch.stack(terms).sum()


def vicregl(
    z0: Tensor, z1: Tensor, map0: Tensor, map1: Tensor, where0: Tensor, where1: Tensor
) -> Tensor:
    """Maps (N, P, C) at locations (N, P, 2): the official code, position by position."""
    z0, z1, map0, map1 = full(z0), full(z1), full(map0), full(map1)
    local = []
    for a, b in ((map0, map1), (where0, where1)):
        distances = torch.cdist(full(a).detach(), full(b).detach())
        for matches in (20, 4):
            local += [_matched(map0, map1, distances, matches)]
            local += [_matched(map1, map0, distances.mT, matches)]
    return 0.75 * vicreg(z0, z1) + 0.25 * torch.stack(local).sum() / 4


def _matched(own: Tensor, other: Tensor, distances: Tensor, matches: int) -> Tensor:
    nearest, index = distances.min(2)
    chosen = nearest.topk(matches, largest=False).indices
    rows = torch.arange(len(own), device=own.device)[:, None]
    pairs = own[rows, chosen], other[rows, index.gather(1, chosen)]
    each = [vicreg(x, y) for x, y in zip(*(p.unbind(1) for p in pairs), strict=True)]
    return torch.stack(each).mean()


def wmse(z0: Tensor, z1: Tensor) -> Tensor:
    """Of one sub-batch: the whole batch."""
    whitened = []
    for z in (full(z0), full(z1)):
        factor = torch.linalg.cholesky(torch.cov(z.t()))
        centred = (z - z.mean(0)).t()
        whitened.append(torch.linalg.solve_triangular(factor, centred, upper=False).t())
    return 2 - 2 * cosine_similarity(*whitened).mean()


def cw_rgp(z0: Tensor, z1: Tensor) -> Tensor:
    """Of one group of channels and one sub-batch."""
    whitened = []
    for z in (full(z0), full(z1)):
        values, vectors = torch.linalg.eigh(torch.cov(z))
        centred = z - z.mean(1, keepdim=True)
        whitened.append((vectors / values.sqrt()) @ vectors.t() @ centred)
    return 2 - 2 * cosine_similarity(*whitened).mean()


def intl(z0: Tensor, z1: Tensor) -> Tensor:
    trade_off = 0.01 * (torch.tensor(float(len(z0))).log2().item() - 3)
    whitened, trace = [], []
    for z in (full(z0), full(z1)):
        gram = torch.cov(z)
        total = gram.trace()
        root = torch.eye(len(z), device=z.device, dtype=z.dtype)
        for _ in range(4):
            root = 1.5 * root - 0.5 * root @ root @ root @ (gram / total)
        t = root @ (z - z.mean(1, keepdim=True)) / total.sqrt()
        whitened.append(t)
        trace.append((t.var(1) - 1).square().sum())
    return 2 - 2 * cosine_similarity(*whitened).mean() + trade_off * (trace[0] + trace[1])


def zero_cl(z0: Tensor, z1: Tensor) -> Tensor:
    """Its feature mode: columns whitened with a constant rotation."""
    whitened = []
    for z in (full(z0), full(z1)):
        z = (z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt()
        with torch.no_grad():
            c = 0.9 * z.t() @ z / (len(z) - 1)
            values, vectors = torch.linalg.eigh(c + 0.1 * torch.eye(len(c)).to(c))
            rotation = (vectors / (values.clamp(min=0) + 1e-5).sqrt()) @ vectors.t()
        whitened.append(z @ rotation)
    correlation = (whitened[0] * whitened[1]).sum(0) / len(z0)
    return (correlation - 1).square().sum()


def frossl(z0: Tensor, z1: Tensor) -> Tensor:
    z = torch.stack([normalize(full(z0), dim=0), normalize(full(z1), dim=0)])
    gram = z.mT @ z if z.shape[1] > z.shape[2] else z @ z.mT
    spread = gram / gram.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    entropy = 2 * torch.linalg.matrix_norm(spread).log().sum()
    return entropy + len(z) * (z - z.mean(0)).square().sum() / z.shape[1]


def mec(p0: Tensor, p1: Tensor, z0: Tensor, z1: Tensor) -> Tensor:
    """The Taylor polynomial of the released code."""
    rows, width = p0.shape
    scale, total = rows * 64 / width, 0.0
    for p, z in ((p0, z1), (p1, z0)):
        c = normalize(full(p), dim=1) @ normalize(full(z), dim=1).t() / scale
        power = series = c
        for k in (2, 3, 4):
            power = power @ c
            series = series + (-1) ** (k + 1) / k * power
        total = total + series.trace()
    return -scale / rows * total / 2
