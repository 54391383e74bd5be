"""patch() and unpatch(): these classes in the place of Lightly's, wherever a module names them."""

import collections
import gc
import importlib
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

_replaced: dict[str, list[tuple[dict, str, type]]] = {}  # class -> (namespace, name, original)


class patch:
    """Replace Lightly's classes by those of this package; in a `with`, until the block ends.

    Rebinds the classes in `lightly.loss`, its modules, and every module that has imported them by
    name (`from lightly.loss import NTXentLoss`), so that it works before and after those imports.
    Out of reach, and named in a warning: objects already made, and subclasses already defined.
    Out of reach unseen: references in local variables, containers, default arguments, closures and
    class bodies, and other processes: call it again there.

    Args:
        names: the classes to replace; without any, all that both libraries have.

    Raises:
        ImportError: without Lightly.
        ValueError: for a name that one of the two does not have.
    """

    def __init__(self, *names: str):
        self._names = [name for name in _chosen(names) if name not in _replaced]
        originals = {getattr(_lightly_loss(), name): name for name in self._names}
        _warn_of_leftovers(originals)
        for original, name in originals.items():
            _replaced[name] = [(space, key, original) for space, key in _bindings(original)]
            for namespace, key, _ in _replaced[name]:
                namespace[key] = getattr(_package(), name)

    def __enter__(self) -> None:
        return None

    def __exit__(self, *exception: object) -> None:
        if self._names:  # an outer patch() keeps its own
            unpatch(*self._names)


def unpatch(*names: str) -> None:
    """Bind Lightly's own classes again, all or those named; what is not replaced stays."""
    for name in names or tuple(_replaced):
        for namespace, key, original in _replaced.pop(name, ()):
            namespace[key] = original


def _chosen(names: tuple[str, ...]) -> list[str]:
    theirs = _lightly_loss()
    ours = [name for name in _package().__all__ if isinstance(getattr(_package(), name), type)]
    ours.remove("patch")
    for name in names:
        if name not in ours or not hasattr(theirs, name):
            raise ValueError(
                f"{name!r} cannot be patched: choose among "
                f"{', '.join(n for n in ours if hasattr(theirs, n))}"
            )
    return [name for name in names or ours if hasattr(theirs, name)]


def _bindings(original: type) -> Iterator[tuple[dict, str]]:
    """Global names of any loaded module that are bound to the class."""
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType) and module.__name__ != __name__:
            namespace = vars(module)
            for key in [k for k, value in list(namespace.items()) if value is original]:
                yield namespace, key


def _warn_of_leftovers(originals: dict[Any, str]) -> None:
    made: dict[type, int] = collections.Counter(
        type(holder) for holder in gc.get_referrers(*originals)
    )
    for original, name in originals.items():
        foreign = [
            f"{cls.__module__}.{cls.__qualname__}"
            for cls in original.__subclasses__()
            if not cls.__module__.startswith("lightly.")
        ]
        if foreign:
            warnings.warn(
                f"{', '.join(foreign)} was derived from Lightly's {name} before patch() and keeps "
                "its code: call patch() before that class is defined",
                stacklevel=3,
            )
        if made[original]:
            warnings.warn(
                f"{made[original]} object(s) of Lightly's {name} were made before patch() and keep "
                "its code: call patch() before they are made",
                stacklevel=3,
            )


def _lightly_loss() -> ModuleType:
    try:
        return importlib.import_module("lightly.loss")
    except ImportError as error:
        raise ImportError(
            "patch() replaces classes of Lightly, which is not installed: import them from "
            "ssl_fast.compat.lightly instead, or pip install lightly"
        ) from error


def _package() -> ModuleType:
    return sys.modules[__package__]
