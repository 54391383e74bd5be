"""One file and one small class per method: views, networks, loss, momentum, schedule.

To add a method: subclass `Method`, give its keyword options defaults and a docstring (they become
`--<name>.<option>`), and list it here.
"""

from ..errors import unknown
from .base import Batch, Method, Output
from .dino import DINO
from .ibot import IBOT
from .msn import MSN
from .pmsn import PMSN
from .resa import ReSA
from .swav import SwAV

__all__ = ["METHODS", "Batch", "Method", "Output", "find_method"]

METHODS: dict[str, type[Method]] = {
    "swav": SwAV,
    "dino": DINO,
    "ibot": IBOT,
    "msn": MSN,
    "pmsn": PMSN,
    "resa": ReSA,
}


def find_method(name: str) -> type[Method]:
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]
