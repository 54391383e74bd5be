"""One module a method: what it calls, on what, and which code or equation it follows."""

from .align_uniform import AlignUniformLoss
from .resa import ReSALoss

__all__ = ["AlignUniformLoss", "ReSALoss"]
