"""`ssl-fast bench --compat`: what swapping one import gains, from 8 rows to 4096.

Each class of `ssl_fast.compat.lightly` beside Lightly's own, which "eager" and "compile" are here:
the same options, inputs and state, which begins anew at every call.
"""

import copy
import dataclasses
import functools
import math
import pkgutil
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from . import report
from .bench_prior import CROPS, DINO_CROPS, LARGE, crop_logits, crops, masked_views
from .bench_wasserstein import manifolds
from .cases import Bar, Case, Problem, no_floor
from .inputs import Function, Inputs, maps, masked, regional, views
from .rows import Row

Shape = tuple[int, ...]

THEIRS, OURS = "lightly.loss", "ssl_fast.compat.lightly"
_MODULES = {"HypersphereLoss": "hypersphere_loss", "PMSNCustomLoss": "pmsn_loss"}
TWO_VIEWS = views(2)
_HEAD = ("class", "shape", "Lightly ms", "compiled ms", "ours ms", "x the faster (10-90 %)")


@dataclasses.dataclass(frozen=True)
class Swap:
    """A class of both packages: sizes, their inputs, and how the class takes them."""

    name: str
    shapes: tuple[Shape, ...]
    inputs: Inputs = TWO_VIEWS
    wrt: tuple[int, ...] = (0, 1)
    call: Callable[[Any], Function] = lambda loss: loss
    options: Callable[[Shape], dict[str, Any]] = lambda shape: {}

    def case(self, shape: Shape) -> Case:
        theirs, ours = self._loader(shape, False), self._loader(shape, True)
        problem = Problem(
            "compat", self.name, self.inputs, lambda *x: theirs()(*x), lambda *x: ours()(*x),
            no_floor, self.wrt,
        )  # fmt: skip
        return Case(problem, shape, bar=Bar(1))

    def _loader(self, shape: Shape, ours: bool) -> Callable[[], Function]:
        return functools.cache(functools.partial(self._load, shape, ours))

    def _load(self, shape: Shape, ours: bool) -> Function:
        torch.manual_seed(0)
        loss = _class(THEIRS, self.name)(**self.options(shape))
        if ours:
            buffers = dict(loss.named_buffers())
            loss = _class(OURS, self.name)(**self.options(shape))
            for name, buffer in loss.named_buffers():
                buffer.copy_(buffers[name])
        return _anew(loss, self.call)


def _class(package: str, name: str) -> type:
    return pkgutil.resolve_name(".".join(filter(None, (package, _MODULES.get(name), name))))


def _anew(loss: torch.nn.Module, call: Callable[[Any], Function]) -> Function:
    """`call(loss)` with the buffers, and TiCo's moment, as they are now; in float64 too."""
    made = {torch.float32: loss, torch.float64: copy.deepcopy(loss).double()}
    held = {dtype: [(b, b.clone()) for b in each.buffers()] for dtype, each in made.items()}

    def function(*inputs: Tensor) -> Tensor:
        dtype = inputs[0].dtype
        for buffer, first in held[dtype]:
            buffer.copy_(first)
        if hasattr(made[dtype], "C"):
            made[dtype].C = None
        return call(made[dtype])(*inputs)

    return function


def _scores(shape: Shape, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Similarities (N, K) to prototypes of 2 + 6 crops."""
    x, weight = crops((*shape, 64), dtype, device)
    return list((x @ weight.t()).chunk(CROPS))


def _logits(shape: Shape, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """(N, K) of 10 students and 2 teachers."""
    return [x.clone() for each in crop_logits(shape, dtype, device) for x in each]


def _power_law(mean: Tensor) -> Tensor:
    prior = torch.arange(1, len(mean) + 1, device=mean.device, dtype=mean.dtype) ** -0.25
    return prior / prior.sum()


def _prototypes(shape: Shape) -> dict[str, Any]:
    return {"output_dim": shape[-1]}


_TALL = (8, 256), (64, 256), (512, 256), (4096, 256)
_MSN = (11, 8, 1024, 256), (11, 64, 1024, 256), (2, 512, 1024, 256)
_NAMED = {"inputs": masked_views, "wrt": (0, 2)}
SWAPS = (
    Swap("NTXentLoss", ((8, 128), (64, 128), (512, 128), (1024, 128), (4096, 128))),
    Swap("NTXentLoss", ((8, 4096, 128), (256, 4096, 128)),
         options=lambda shape: {"memory_bank_size": shape[1:]},
         inputs=lambda shape, *rest: views(2)((shape[0], shape[2]), *rest), wrt=(0,)),
    Swap("DCLLoss", ((8, 128), (64, 128), (512, 128), (2048, 128))),
    Swap("DCLWLoss", ((8, 128), (64, 128), (512, 128), (2048, 128))),
    Swap("HypersphereLoss", ((8, 128), (64, 128), (512, 128), (2048, 128))),
    Swap("NegativeCosineSimilarity", ((8, 2048), (256, 2048), (4096, 2048))),
    Swap("KoLeoLoss", ((8, 128), (64, 128), (512, 128), (4096, 128)), views(1), (0,)),
    Swap("BarlowTwinsLoss", ((8, 256), (64, 256), (256, 2048), (4096, 256))),
    Swap("VICRegLoss", ((8, 256), (64, 256), (256, 2048), (256, 8192), (4096, 256))),
    Swap("VICRegLLoss", ((8, 256, 49, 64), (32, 256, 49, 64)), maps, (0, 1, 2, 3), regional),
    Swap("TiCoLoss", _TALL),
    Swap("FroSSLLoss", _TALL, call=lambda loss: lambda *z: loss(list(z))),
    Swap("MMCRLoss", ((8, 2, 256), (64, 2, 256), (256, 2, 512)), manifolds),
    Swap("WMSELoss", ((8, 4), (64, 32), (512, 64), (4096, 64)),
         options=lambda shape: {"embedding_dim": shape[1], "w_size": min(256, shape[0])},
         call=lambda loss: lambda *z: loss(torch.cat(z))),
    Swap("SwaVLoss", ((8, 3000), (64, 3000), (256, 3000)), _scores, tuple(range(CROPS)),
         lambda loss: lambda *x: loss(list(x[:LARGE]), list(x[LARGE:]))),
    Swap("DINOLoss", ((8, 4096), (16, 16384), (64, 4096)), _logits, tuple(range(DINO_CROPS)),
         lambda loss: lambda *x: loss(list(x[DINO_CROPS:]), list(x[:DINO_CROPS])), _prototypes),
    Swap("IBOTPatchLoss", ((2, 48, 8192), (16, 192, 2048)), masked, (0,),
         lambda loss: lambda s, t, mask: loss(t, s, mask[:, None]), _prototypes),
    Swap("MSNLoss", _MSN, **_NAMED),
    Swap("PMSNLoss", ((11, 64, 8142, 256), *_MSN), **_NAMED),
    Swap("PMSNCustomLoss", _MSN, **_NAMED, options=lambda _: {"target_distribution": _power_law}),
)  # fmt: skip

# Sizes of published recipes.
TRAINED = {
    "NTXentLoss": ("1024x128",),
    "VICRegLoss": ("256x2048", "256x8192"),
    "BarlowTwinsLoss": ("256x2048",),
    "SwaVLoss": ("256x3000",),
    "DINOLoss": ("16x16384",),
    "MSNLoss": ("11x64x1024x256",),
    "PMSNLoss": ("11x64x8142x256",),
    "MMCRLoss": ("256x2x512",),
}


def cases() -> list[Case]:
    """None without Lightly."""
    if find_spec("lightly") is None:
        return []
    return [swap.case(shape) for swap in SWAPS for shape in swap.shapes]


def table(rows: list[Row]) -> str:
    rows = report.last(rows)
    if not rows:
        return ""
    lines = [_HEAD, ("---", "---", *["---:"] * 4), *map(_cells, rows)]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    gains = {(row.problem, row.size): row.speedup.median for row in rows}
    return f"{text}\n\n{means(gains)}; those are marked *."


def means(gains: dict[tuple[str, str], float]) -> str:
    """What they come to, by class and size."""
    faster = sum(gain >= 1 for gain in gains.values())
    trained = [gain for case, gain in gains.items() if _trained(*case)]
    text = f"{faster} of {len(gains)} no slower than Lightly, eager or compiled"
    text += f"; geometric mean {_mean(list(gains.values())):.2f} x"
    return text + f", {_mean(trained):.2f} x at sizes of published recipes" * bool(trained)


def _mean(gains: list[float]) -> float:
    return math.exp(sum(map(math.log, gains)) / max(1, len(gains)))


def _trained(problem: str, size: str) -> bool:
    return size in TRAINED.get(problem, ())


def _cells(row: Row) -> tuple[str, ...]:
    s, times = row.speedup, [row.milliseconds.get(name) for name in ("eager", "compile", "ours")]
    gain = f"{s.median:.2f} ({s.low:.2f}-{s.high:.2f})"
    size = row.size.replace("x", " x ") + " *" * _trained(row.problem, row.size)
    return row.problem, size, *map(report.number, times), gain


FORM = report.Form("compat", table, report.draw)
