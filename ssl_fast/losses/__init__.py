"""One module a method: what it calls, on what, and which code or equation it follows."""

from .resa import ReSALoss
from .spectral import FroSSLLoss, MECLoss, MMCRLoss, WassersteinUniformityLoss
from .whitening import CWRGPLoss, INTLLoss, WMSELoss, ZeroCLLoss

__all__ = [
    "CWRGPLoss",
    "FroSSLLoss",
    "INTLLoss",
    "MECLoss",
    "MMCRLoss",
    "ReSALoss",
    "WMSELoss",
    "WassersteinUniformityLoss",
    "ZeroCLLoss",
]
