"""One module a method: what it calls, on what, and which code or equation it follows."""

from .align_uniform import AlignUniformLoss
from .barlow_twins import BarlowTwinsLoss
from .dino import DINOLoss
from .ibot import IBOTLoss
from .koleo import KoLeoLoss
from .msn import MSNLoss
from .pmsn import PMSNLoss
from .resa import ReSALoss
from .spectral import FroSSLLoss, MECLoss, MMCRLoss, WassersteinUniformityLoss
from .swav import SwAVLoss
from .tico import TiCoLoss
from .vicreg import VICRegLLoss, VICRegLoss
from .whitening import CWRGPLoss, INTLLoss, WMSELoss, ZeroCLLoss

__all__ = [
    "AlignUniformLoss",
    "BarlowTwinsLoss",
    "CWRGPLoss",
    "DINOLoss",
    "FroSSLLoss",
    "IBOTLoss",
    "INTLLoss",
    "KoLeoLoss",
    "MECLoss",
    "MMCRLoss",
    "MSNLoss",
    "PMSNLoss",
    "ReSALoss",
    "SwAVLoss",
    "TiCoLoss",
    "VICRegLLoss",
    "VICRegLoss",
    "WMSELoss",
    "WassersteinUniformityLoss",
    "ZeroCLLoss",
]
