"""One list of all public losses: from it come the tests of how they fit PyTorch."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from checks import unit
from torch import Tensor

from ssl_fast import losses
from ssl_fast.functional import info_nce

N, D = 8, 12
PRIOR = torch.tensor([0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05])
MASK = torch.tensor([[True, True, False, True], [True] * 4, [False, False, True, False]])
CLUSTERING = unit(5, D, seed=7), torch.linspace(0.1, 0.5, 5), torch.tensor([0, 1, 1, 0, 2, 4, 4, 4])


@dataclass(frozen=True)
class Case:
    """A module, and a call of it on x, y and t, each (N, D); gradients reach x and y."""

    make: Callable[[], torch.nn.Module]
    call: Callable[..., Tensor]
    same_bits: bool = True  # compiled and eager; not where AOT autograd decomposes plain PyTorch
    waits: bool = False  # for the host: decompositions, shapes that depend on values
    cast: float = 5e-2  # how near the loss under autocast is to the float32 loss


def full_queue() -> losses.SwAVLoss:
    loss = losses.SwAVLoss(queue_length=5, embedding_dim=D)
    loss.load_state_dict({"queue": unit(2, 5, D, seed=9)})
    return loss


def seeded(make: Callable[[], torch.nn.Module]) -> Callable[[], torch.nn.Module]:
    """Queues begin at random."""

    def made() -> torch.nn.Module:
        torch.manual_seed(3)
        return make()

    return made


def masked(f: losses.IBOTLoss, student: Tensor, teacher: Tensor, *prototypes: Tensor) -> Tensor:
    return f(student, teacher, MASK.to(student.device), *prototypes)


def clustered(f: torch.nn.Module, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
    return f(x + y, t, [tuple(part.to(x.device) for part in CLUSTERING)])


def queue(f: losses.MemoryQueue, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
    loss = info_nce(f.nearest(t).to(x), x + y)
    if f.training:
        f.enqueue(t)
    return loss


def regions(f: losses.VICRegLLoss, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
    maps = [z.view(N, 2, 2, 3) for z in (x, y)]
    where = t[:, :8].view(N, 2, 2, 2)
    return f([(x, maps[0]), (y, maps[1])], [where, where.flip(0)])


def plain(make: Callable, call: Callable, **options) -> Case:
    """Of products and decompositions alone, which run in full precision under autocast."""
    return Case(make, call, same_bits=False, cast=1e-5, **options)


CASES = {
    "align_uniform": Case(losses.AlignUniformLoss, lambda f, x, y, t: f(x, y)),
    "barlow_twins": Case(losses.BarlowTwinsLoss, lambda f, x, y, t: f(x, y)),
    "byol": Case(losses.BYOLLoss, lambda f, x, y, t: f(x, y, t, -t)),
    "cw_rgp": plain(lambda: losses.CWRGPLoss(2, 4), lambda f, x, y, t: f([x, y]), waits=True),
    "dcl": Case(losses.DCLLoss, lambda f, x, y, t: f(x, y)),
    "dclw": Case(losses.DCLWLoss, lambda f, x, y, t: f(x, y)),
    "dino": Case(lambda: losses.DINOLoss(N),
                 lambda f, x, y, t: f([x, t], [t, -t], y, t, epoch=0)),
    "dino, logits": Case(lambda: losses.DINOLoss(N),
                         lambda f, x, y, t: f([x @ y.T, t @ y.T], [t @ t.T])),
    "dino, sinkhorn": Case(
        lambda: losses.DINOLoss(N, centering="sinkhorn", prior="power_law", prior_order="sorted"),
        lambda f, x, y, t: f([x, t], [t, -t], y),
    ),
    "frossl": Case(losses.FroSSLLoss, lambda f, x, y, t: f([x, y])),
    "ibot": Case(lambda: losses.IBOTLoss(N), lambda f, x, y, t: masked(f, x, t, y, t)),
    "ibot, logits": Case(lambda: losses.IBOTLoss(N),
                         lambda f, x, y, t: masked(f, x @ y.T, t @ t.T)),
    "intl": plain(losses.INTLLoss, lambda f, x, y, t: f([x, y, x + y])),
    "koleo": Case(losses.KoLeoLoss, lambda f, x, y, t: f(torch.cat([x, y])), same_bits=False),
    "mec": plain(losses.MECLoss, lambda f, x, y, t: f([x, y], [t, -t])),
    "mmcr": plain(losses.MMCRLoss, lambda f, x, y, t: f(x.view(N, 2, 6), y.view(N, 2, 6)),
                  waits=True),
    "moco": Case(seeded(lambda: losses.MoCoLoss(6, D)), lambda f, x, y, t: f(x + y, t)),
    "moco, v3": Case(lambda: losses.MoCoLoss(0), lambda f, x, y, t: f(x, t) + f(y, -t)),
    "msn": Case(lambda: losses.MSNLoss(sinkhorn_iterations=2), lambda f, x, y, t: f(x, t, y)),
    "msn, entropy": Case(lambda: losses.MSNLoss(entropy_weight=0.5),
                         lambda f, x, y, t: f(x, t, y)),
    "nnclr": Case(seeded(lambda: losses.NNCLRLoss(6, D)), lambda f, x, y, t: f(x, y, t, -t)),
    "nt_xent": Case(losses.NTXentLoss, lambda f, x, y, t: f(x, y)),
    "nt_xent, views": Case(losses.NTXentLoss, lambda f, x, y, t: f(x, y, t)),
    "pauc": Case(seeded(lambda: losses.PAUCLoss(6, D, negatives=2)),
                 clustered, waits=True),
    "pmsn": Case(losses.PMSNLoss, lambda f, x, y, t: f(x, t, y)),
    "pmsn, given": Case(lambda: losses.PMSNLoss(PRIOR), lambda f, x, y, t: f(x, t, y)),
    "proto_nce": Case(seeded(lambda: losses.ProtoNCELoss(6, D, negatives=2)), clustered),
    "queue": Case(seeded(lambda: losses.MemoryQueue(6, D)), queue),
    "resa": Case(losses.ReSALoss, lambda f, x, y, t: f([x, y], [y.detach(), x.detach()], t, t)),
    "simsiam": Case(losses.SimSiamLoss, lambda f, x, y, t: f(x, y, t, -t)),
    "swav": Case(losses.SwAVLoss, lambda f, x, y, t: f([x, t, -x], y)),
    "swav, queue": Case(full_queue, lambda f, x, y, t: f([t, -t, x], y)),
    "swav, sorted prior": Case(
        lambda: losses.SwAVLoss(prior=PRIOR, prior_order="sorted"),
        lambda f, x, y, t: f([x, t], y),
    ),
    "tico": Case(losses.TiCoLoss, lambda f, x, y, t: f(x, y)),
    "vicreg": Case(losses.VICRegLoss, lambda f, x, y, t: f(x, y)),
    "vicregl": Case(lambda: losses.VICRegLLoss(matches=(3, 2)), regions),
    "wasserstein": plain(losses.WassersteinUniformityLoss, lambda f, x, y, t: f(x, y)),
    "wmse": plain(lambda: losses.WMSELoss(4, 2, eps=0.1), lambda f, x, y, t: f([x, y]), waits=True),
    "zero_cl": plain(lambda: losses.ZeroCLLoss("both"), lambda f, x, y, t: f(x, y), waits=True),
}  # fmt: skip


def operands(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [unit(N, D, dtype=dtype, seed=seed) for seed in (2, 4, 6)]
