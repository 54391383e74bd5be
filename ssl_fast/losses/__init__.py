"""One module a method: what it calls, on what, and which code or equation it follows."""

from .resa import ReSALoss

__all__ = ["ReSALoss"]
