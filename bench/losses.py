"""One case a class of `ssl_fast.losses`: what `ssl-fast bench --quick` times.

State begins anew at every call, for every contender: a queue is copied in, a centre set to zero.
"""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ssl_fast import losses
from ssl_fast.compat import lightly as compat

from . import formulas
from .bench_contrastive import NT_XENT, QUEUE
from .bench_covariance import BARLOW, VICREG, WEIGHT
from .bench_prior import CROPS, DINO, MSN, PMSN, SWAV
from .bench_resa import STEP
from .bench_wasserstein import MMCR, W2
from .cases import Case, Problem, lightly, no_floor
from .inputs import Function, Inputs, clustered, maps, masked, regional, views

Loader = Callable[[], Function]

QUEUED, WIDTH = 4096, 128
TOKENS = 8192  # prototypes of DINO and iBOT


def cases(device: str) -> list[Case]:
    with torch.device(device):
        made = [*_benchmarked(), *_contrastive(), *_distilled(), *_whitened(), *_spread()]
    return [dataclasses.replace(case, device=device) for case in made]


def _benchmarked() -> list[Case]:
    """Problems that have a file of their own, called as the class does it."""
    swav, dino = losses.SwAVLoss(), losses.DINOLoss(TOKENS)
    resa, moco = losses.ReSALoss(), losses.MoCoLoss(QUEUED, WIDTH)
    w2 = losses.WassersteinUniformityLoss(normalize=False)
    bank = lightly("NTXentLoss", _bank, temperature=0.2, memory_bank_size=(QUEUED, WIDTH))
    return [
        _as("NTXentLoss", NT_XENT, (512, WIDTH), losses.NTXentLoss(0.2)),
        _as("MoCoLoss", QUEUE, (256, QUEUED, WIDTH), _queue(moco, moco.queue.rows), bank),
        _as("VICRegLoss", VICREG, (256, 1024), losses.VICRegLoss()),
        _as("BarlowTwinsLoss", BARLOW, (256, 1024), losses.BarlowTwinsLoss(WEIGHT),
            lightly("BarlowTwinsLoss", lambda_param=WEIGHT)),
        _as("SwAVLoss", SWAV, (64, 3000, WIDTH), lambda x, c: swav(x.chunk(CROPS), c)),
        _as("DINOLoss", DINO, (16, TOKENS), _centre(lambda s, t: dino(list(s), list(t)), dino)),
        _as("MSNLoss", MSN, (11, 32, 1024, 256), losses.MSNLoss(sinkhorn_iterations=3)),
        # With Lightly's divergence: the paper's, in `losses`, is the other way round.
        _as("PMSNLoss", PMSN, (11, 32, 1024, 256), compat.PMSNLoss()),
        _as("ReSALoss", STEP, (256, 128, 512), lambda z, z_m, *h: resa([z], [z_m, z_m], *h)),
        _as("MMCRLoss", MMCR, (64, 2, WIDTH), losses.MMCRLoss()),
        _as("WassersteinUniformityLoss", W2, (512, 256), w2),
    ]  # fmt: skip


def _contrastive() -> list[Case]:
    nnclr = losses.NNCLRLoss(QUEUED, WIDTH)
    proto, pauc = losses.ProtoNCELoss(0), losses.PAUCLoss(0)
    uniform = losses.AlignUniformLoss()
    sphere = lightly("hypersphere_loss.HypersphereLoss", t=2.0)
    return [
        _case("DCLLoss", (512, WIDTH), views(2), formulas.dcl, losses.DCLLoss(),
              lightly("DCLLoss")),
        _case("DCLWLoss", (512, WIDTH), views(2), formulas.dclw, losses.DCLWLoss(),
              lightly("DCLWLoss")),
        _case("NNCLRLoss", (256, QUEUED, WIDTH), views(4, queue=True), formulas.nnclr,
              _queue(nnclr, nnclr.queue.rows)),
        _case("ProtoNCELoss", (256, 256, WIDTH), clustered, formulas.proto_nce,
              lambda q, k, *clustering: proto(q, k, [clustering]), wrt=(0,)),
        _case("PAUCLoss", (256, 64, WIDTH), clustered, formulas.pauc,
              lambda q, k, *clustering: pauc(q, k, [clustering]), wrt=(0,)),
        _case("AlignUniformLoss", (512, WIDTH), views(2), formulas.align_uniform,
              lambda x, y: uniform(normalize(x), normalize(y)), sphere),
    ]  # fmt: skip


def _distilled() -> list[Case]:
    """Predictions and another network's outputs."""
    ibot, mec = losses.IBOTLoss(TOKENS), losses.MECLoss()
    patches = lightly("IBOTPatchLoss", _patches, output_dim=TOKENS)
    return [
        _case("BYOLLoss", (256, 256), views(4), formulas.byol, losses.BYOLLoss(),
              lightly("NegativeCosineSimilarity", lambda f: _both_ways(f, 4, 2))),
        _case("SimSiamLoss", (256, 2048), views(4), formulas.simsiam, losses.SimSiamLoss(),
              lightly("NegativeCosineSimilarity", lambda f: _both_ways(f, 0, 0.5))),
        _case("IBOTLoss", (8, 48, TOKENS), masked, formulas.ibot, _centre(ibot, ibot), patches,
              wrt=(0,)),
        _case("MECLoss", (256, 256), views(4), formulas.mec,
              lambda p0, p1, z0, z1: mec([p0, p1], [z0, z1])),
    ]  # fmt: skip


def _whitened() -> list[Case]:
    wmse, cw_rgp = losses.WMSELoss(sub_batch=256), losses.CWRGPLoss(groups=1)
    intl = losses.INTLLoss()
    return [
        _case("WMSELoss", (256, 64), views(2), formulas.wmse, lambda *z: wmse(z),
              lightly("WMSELoss", lambda f: lambda *z: f(torch.cat(z)), embedding_dim=64)),
        _case("CWRGPLoss", (64, 256), views(2), formulas.cw_rgp, lambda *z: cw_rgp(z)),
        _case("INTLLoss", (128, 256), views(2), formulas.intl, lambda *z: intl(z)),
        _case("ZeroCLLoss", (256, WIDTH), views(2), formulas.zero_cl, losses.ZeroCLLoss()),
    ]  # fmt: skip


def _spread() -> list[Case]:
    """Statistics of the batch."""
    tico, frossl, vicregl = losses.TiCoLoss(), losses.FroSSLLoss(), losses.VICRegLLoss()
    return [
        _case("KoLeoLoss", (512, WIDTH), views(1), formulas.koleo, losses.KoLeoLoss(),
              lightly("KoLeoLoss"), wrt=(0,)),
        _case("TiCoLoss", (256, 256), views(2), formulas.tico,
              lambda *z: tico(*z, update=False), lightly("TiCoLoss", _forgetful)),
        _case("FroSSLLoss", (256, 512), views(2), formulas.frossl, lambda *z: frossl(z),
              lightly("FroSSLLoss", lambda f: lambda *z: f(list(z)))),
        _case("VICRegLLoss", (32, 256, 49, 64), maps, formulas.vicregl, regional(vicregl),
              lightly("VICRegLLoss", regional), wrt=(0, 1, 2, 3)),
    ]  # fmt: skip


def _as(name: str, problem: Problem, shape: tuple[int, ...], ours: Function, rival=None) -> Case:
    rivals = (("lightly", rival),) if rival else problem.rivals
    made = _case(name, shape, problem.inputs, problem.eager, ours, wrt=problem.differentiable)
    return dataclasses.replace(made, problem=dataclasses.replace(made.problem, rivals=rivals))


def _case(
    name: str,
    shape: tuple[int, ...],
    inputs: Inputs,
    eager: Function,
    ours: Function,
    rival: Loader | None = None,
    wrt: tuple[int, ...] = (0, 1),
) -> Case:
    rivals = (("lightly", rival),) if rival else ()
    return Case(Problem("losses", name, inputs, eager, ours, no_floor, wrt, rivals=rivals), shape)


def _queue(loss: torch.nn.Module, rows: Tensor) -> Function:
    def call(*arguments: Tensor) -> Tensor:
        rows.copy_(arguments[-1])
        return loss(*arguments[:-1])

    return call


def _bank(loss: torch.nn.Module) -> Function:
    return _queue(loss, loss.memory_bank.bank)


def _centre(call: Function, loss: torch.nn.Module) -> Function:
    def centred(*arguments: Tensor) -> Tensor:
        loss.center.zero_()
        return call(*arguments)

    return centred


def _patches(loss: torch.nn.Module) -> Function:
    return lambda s, t, mask: _centre(lambda *x: loss(*x), loss.center)(t, s, mask[:, None])


def _forgetful(loss: torch.nn.Module) -> Function:
    def call(*z: Tensor) -> Tensor:
        loss.C = None
        return loss(*z)

    return call


def _both_ways(loss: Function, constant: float, weight: float) -> Function:
    return lambda p0, p1, z0, z1: constant + weight * (loss(p0, z1) + loss(p1, z0))
