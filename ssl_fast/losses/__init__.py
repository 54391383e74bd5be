"""One module a method: what it calls, on what, and which code or equation it follows."""

from .barlow_twins import BarlowTwinsLoss
from .resa import ReSALoss
from .tico import TiCoLoss
from .vicreg import VICRegLLoss, VICRegLoss

__all__ = ["BarlowTwinsLoss", "ReSALoss", "TiCoLoss", "VICRegLLoss", "VICRegLoss"]
