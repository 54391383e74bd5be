"""One module a method: what it calls, on what, and which code or equation it follows."""

from .align_uniform import AlignUniformLoss
from .dino import DINOLoss
from .ibot import IBOTLoss
from .koleo import KoLeoLoss
from .msn import MSNLoss
from .pmsn import PMSNLoss
from .resa import ReSALoss
from .swav import SwAVLoss

__all__ = [
    "AlignUniformLoss",
    "DINOLoss",
    "IBOTLoss",
    "KoLeoLoss",
    "MSNLoss",
    "PMSNLoss",
    "ReSALoss",
    "SwAVLoss",
]
