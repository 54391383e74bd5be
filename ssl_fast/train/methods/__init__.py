"""One file and one small class per method: views, networks, loss, momentum, schedule.

To add a method: subclass `Method`, give its keyword options defaults and a docstring (they become
`--<name>.<option>`), and list it here.
"""

from ..errors import unknown
from .base import Batch, Method, Output
from .resa import ReSA

__all__ = ["METHODS", "Batch", "Method", "Output", "find_method"]

METHODS: dict[str, type[Method]] = {"resa": ReSA}


def find_method(name: str) -> type[Method]:
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]
