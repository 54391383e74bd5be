"""One module a method: what it calls, on what, and which code or equation it follows."""

from .align_uniform import AlignUniformLoss
from .barlow_twins import BarlowTwinsLoss
from .byol import BYOLLoss
from .dcl import DCLLoss, DCLWLoss
from .dino import DINOLoss
from .ibot import IBOTLoss
from .koleo import KoLeoLoss
from .moco import MoCoLoss
from .msn import MSNLoss
from .nnclr import NNCLRLoss
from .nt_xent import NTXentLoss
from .pauc import PAUCLoss
from .pmsn import PMSNLoss
from .proto_nce import ProtoNCELoss
from .queue import MemoryQueue
from .resa import ReSALoss
from .simsiam import SimSiamLoss
from .spectral import FroSSLLoss, MECLoss, MMCRLoss, WassersteinUniformityLoss
from .swav import SwAVLoss
from .tico import TiCoLoss
from .vicreg import VICRegLLoss, VICRegLoss
from .whitening import CWRGPLoss, INTLLoss, WMSELoss, ZeroCLLoss

__all__ = [
    "AlignUniformLoss",
    "BYOLLoss",
    "BarlowTwinsLoss",
    "CWRGPLoss",
    "DCLLoss",
    "DCLWLoss",
    "DINOLoss",
    "FroSSLLoss",
    "IBOTLoss",
    "INTLLoss",
    "KoLeoLoss",
    "MECLoss",
    "MMCRLoss",
    "MSNLoss",
    "MemoryQueue",
    "MoCoLoss",
    "NNCLRLoss",
    "NTXentLoss",
    "PAUCLoss",
    "PMSNLoss",
    "ProtoNCELoss",
    "ReSALoss",
    "SimSiamLoss",
    "SwAVLoss",
    "TiCoLoss",
    "VICRegLLoss",
    "VICRegLoss",
    "WMSELoss",
    "WassersteinUniformityLoss",
    "ZeroCLLoss",
]
