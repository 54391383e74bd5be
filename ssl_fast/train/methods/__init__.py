"""One file and one small class per method: views, networks, loss, momentum, schedule.

To add a method: subclass `Method`, give its keyword options defaults and a docstring (they become
`--<name>.<option>`), and list it here.
"""

from ..errors import unknown
from .align_uniform import AlignUniform
from .barlow_twins import BarlowTwins
from .base import Batch, Method, Output
from .byol import BYOL
from .cw_rgp import CWRGP
from .data2vec import Data2Vec
from .dino import DINO
from .ibot import IBOT
from .intl import INTL
from .mae import MAE
from .mec import MEC
from .moco_v2 import MoCoV2
from .moco_v3 import MoCoV3
from .msn import MSN
from .nnclr import NNCLR
from .pauc import PAUC
from .pcl import PCL
from .pmsn import PMSN
from .resa import ReSA
from .simclr import SimCLR
from .simsiam import SimSiam
from .swav import SwAV
from .vicreg import VICReg
from .wmse import WMSE
from .zero_cl import ZeroCL

__all__ = ["METHODS", "Batch", "Method", "Output", "find_method"]

METHODS: dict[str, type[Method]] = {
    "simclr": SimCLR,
    "moco_v2": MoCoV2,
    "moco_v3": MoCoV3,
    "nnclr": NNCLR,
    "byol": BYOL,
    "simsiam": SimSiam,
    "align_uniform": AlignUniform,
    "barlow_twins": BarlowTwins,
    "vicreg": VICReg,
    "zero_cl": ZeroCL,
    "wmse": WMSE,
    "cw_rgp": CWRGP,
    "intl": INTL,
    "mec": MEC,
    "swav": SwAV,
    "dino": DINO,
    "ibot": IBOT,
    "msn": MSN,
    "pmsn": PMSN,
    "pcl": PCL,
    "pauc": PAUC,
    "resa": ReSA,
    "mae": MAE,
    "data2vec": Data2Vec,
}


def find_method(name: str) -> type[Method]:
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]
