"""patch(): before and after the imports, inside a block, and what it cannot reach."""

import gc
import importlib
import subprocess
import sys
import textwrap
import types

import pytest

from ssl_fast.compat import lightly as ours

theirs = pytest.importorskip("lightly.loss", reason="Lightly is not installed")
module = importlib.import_module("lightly.loss.swav_loss")
from lightly.loss import SwaVLoss  # noqa: E402  # imported before any patch(), and rebound by it

HELD = [SwaVLoss]  # a container, out of patch()'s reach


@pytest.fixture(autouse=True)
def restored():
    gc.collect()  # what earlier tests made of Lightly's classes
    yield
    ours.unpatch()
    assert theirs.SwaVLoss is HELD[0]


def test_replaces_everywhere_and_back() -> None:
    ours.patch()
    assert theirs.SwaVLoss is module.SwaVLoss is SwaVLoss is ours.SwaVLoss
    assert theirs.DINOLoss is ours.DINOLoss
    ours.unpatch()
    assert theirs.SwaVLoss is module.SwaVLoss is SwaVLoss is HELD[0]


def test_import_after() -> None:
    with ours.patch():
        from lightly.loss import SwaVLoss as Later

        assert Later is ours.SwaVLoss
    assert theirs.SwaVLoss is HELD[0]


def test_named_classes_only() -> None:
    with ours.patch("DINOLoss"):
        assert theirs.DINOLoss is ours.DINOLoss
        assert theirs.SwaVLoss is HELD[0]


def test_inner_block_leaves_outer() -> None:
    with ours.patch():
        with ours.patch():
            pass
        assert theirs.SwaVLoss is ours.SwaVLoss
    ours.unpatch()  # nothing left to do


def test_module_that_imported_by_another_name() -> None:
    user = types.ModuleType("user_of_lightly")
    exec("from lightly.loss import SwaVLoss as Loss", vars(user))
    sys.modules["user_of_lightly"] = user
    try:
        with ours.patch():
            assert user.Loss is ours.SwaVLoss
        assert user.Loss is HELD[0]
    finally:
        del sys.modules["user_of_lightly"]


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"'SwavLoss' cannot be patched: choose among .*SwaVLoss"):
        ours.patch("SwavLoss")


def test_says_what_it_cannot_reach() -> None:
    held = HELD[0]()
    with pytest.warns(UserWarning, match=r"1 object\(s\) of Lightly's SwaVLoss"), ours.patch():
        assert type(held) is HELD[0]
    del held

    class Derived(HELD[0]):
        pass

    with pytest.warns(UserWarning, match=r"Derived was derived from Lightly's SwaVLoss"):
        ours.patch("SwaVLoss")
    assert Derived.__mro__[1] is HELD[0]


SCRIPT = """
    import sys
    sys.modules["lightly"] = None  # as if it were not installed
    import ssl_fast.compat.lightly as ours, ssl_fast.compat.solo
    ours.SwaVLoss()
    try:
        ours.patch()
    except ImportError as error:
        assert "not installed" in str(error)
    else:
        raise AssertionError("patched nothing")
    assert not any(name.startswith(("lightly.", "solo.")) for name in sys.modules)
"""


def test_without_lightly() -> None:
    """The package is importable and works; patch() says what is missing."""
    subprocess.run([sys.executable, "-c", textwrap.dedent(SCRIPT)], check=True)
