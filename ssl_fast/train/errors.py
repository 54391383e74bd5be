"""Mistakes in a command, told in one sentence instead of a traceback."""

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """The command asks for something that cannot be done; the message says what would work."""


class Interrupted(UsageError):
    """The user, or the machine, ended the command before its end."""


def unknown(kind: str, given: str, known: Iterable[str]) -> UsageError:
    known = sorted(known)
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.4)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return UsageError(f"unknown {kind} {given!r}.{hint} Known: {', '.join(known)}.")
