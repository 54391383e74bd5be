"""ssl_fast.compat.lightly against the installed Lightly: one table, all classes, every option."""

import copy
import importlib
import io
from types import SimpleNamespace

import pytest
import torch
from checks import error
from compat_cases import CASES, Outcome, combinations, of_lightly, parameters, run
from torch import Tensor
from torch.utils._pytree import tree_map

from ssl_fast import backend as dispatch
from ssl_fast.compat import lightly as ours

pytest.importorskip("lightly.loss", reason="Lightly is not installed")
theirs = SimpleNamespace(**of_lightly())

# Ours beside Lightly's: what was dropped in 1.6, and what Lightly has not.
EPS = torch.finfo(torch.float32).eps
EXTRA = {"me_max_weight", "strict"}
NAMES = [name for name in CASES if hasattr(theirs, name)]
OPTIONS = [(name, options) for name, options in combinations() if name in NAMES]


def identifier(value: object) -> str:
    if not isinstance(value, dict):
        return str(value)
    return ",".join(f"{k}={getattr(v, '__name__', v)}" for k, v in value.items())


def test_every_class_is_in_the_table() -> None:
    classes = {n for n in ours.__all__ if isinstance(getattr(ours, n), type)} - {"patch"}
    assert classes == set(CASES)


@pytest.mark.parametrize("name", NAMES)
def test_signatures(name) -> None:
    """Same parameters, order, kinds and defaults; ours may have more at the end."""
    for method in ("__init__", "forward"):
        mine = parameters(getattr(getattr(ours, name), method))
        other = parameters(getattr(getattr(theirs, name), method))
        assert {p[0] for p in mine} - {p[0] for p in other} <= EXTRA
        mine, other = ([by_name(p) for p in side if p[0] not in EXTRA] for side in (mine, other))
        assert mine == other


def by_name(parameter: tuple) -> tuple:
    """A default that is a function is known by its name."""
    name, kind, default = parameter
    return name, kind, getattr(default, "__name__", default)


@pytest.mark.parametrize("name", NAMES)
def test_attributes(name) -> None:
    """Whatever Lightly's object holds, ours holds: attributes, buffers, state-dict keys."""
    options = CASES[name].options[0]
    mine, other = getattr(ours, name)(**options), getattr(theirs, name)(**options)
    public = {n for n in vars(other) if not n.startswith("_")}
    assert public <= set(vars(mine)) | set(dir(type(mine)))
    for attribute in public:
        expected = getattr(other, attribute)
        if isinstance(expected, bool | int | float | str | tuple):
            assert getattr(mine, attribute) == expected, attribute
    methods = {n for n in dir(type(other)) if not n.startswith("_")}
    assert methods <= set(dir(mine))
    assert {n: b.shape for n, b in mine.named_buffers()} == {
        n: b.shape for n, b in other.named_buffers()
    }
    assert mine.state_dict().keys() == other.state_dict().keys()
    assert type(mine).__mro__[1] is not type(other)


@pytest.mark.parametrize("name", NAMES)
def test_helpers(name) -> None:
    """Functions and classes of Lightly's module that stand in ours, with one signature."""
    case = CASES[name]
    module = importlib.import_module(f"lightly.loss.{case.module}")
    mine = importlib.import_module(f"ssl_fast.compat.lightly.{case.module}")
    for helper, value in vars(module).items():
        if getattr(value, "__module__", "") != module.__name__ or helper.startswith("_"):
            continue
        if helper in ours.__all__:
            continue
        assert parameters(getattr(mine, helper)) == parameters(value), helper


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=identifier)
def test_float32(name, options) -> None:
    """Against Lightly in float64: at most twice Lightly's own error, and some roundings."""
    case = CASES[name]
    for rows in case.rows:
        exact = run(getattr(theirs, name), case, options, rows, torch.float64)
        native = run(getattr(theirs, name), case, options, rows, torch.float32)
        with dispatch.trace() as ran:
            actual = run(getattr(ours, name), case, options, rows, torch.float32)
        assert_equal(actual, native, exact, 8 * EPS)
        if not case.kernel or "loss_fn" in options:
            continue
        assert ran, "no kernel ran"
        assert {used for _, used in ran} == {"native"}


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=identifier)
def test_float64(name, options) -> None:
    case = CASES[name]
    exact = run(getattr(theirs, name), case, options, 13, torch.float64)
    actual = run(getattr(ours, name), case, options, 13, torch.float64)
    assert_equal(actual, exact, exact, case.tolerance)


@pytest.mark.parametrize("name", [n for n in NAMES if CASES[n].half])
def test_bfloat16(name) -> None:
    """Against Lightly in float64 on the same rounded inputs."""
    case = CASES[name]
    options = case.options[0]
    exact = run(getattr(theirs, name), rounded(case), options, 16, torch.float64)
    native = run(getattr(theirs, name), case, options, 16, torch.bfloat16)
    actual = run(getattr(ours, name), case, options, 16, torch.bfloat16)
    assert_equal(actual, native, exact, 2 * torch.finfo(torch.bfloat16).eps)


def rounded(case):
    def inputs(rows, step):
        return tree_map(
            lambda x: (
                x.bfloat16().double() if isinstance(x, Tensor) and x.is_floating_point() else x
            ),
            case.inputs(rows, step),
        )

    return type(case)(**{**vars(case), "inputs": inputs})


def assert_equal(actual: Outcome, native: Outcome, exact: Outcome, floor: float) -> None:
    for a, n, e in zip(actual.values, native.values, exact.values, strict=True):
        assert (a.dtype, a.shape) == (n.dtype, n.shape)
        assert_close("value", a, n, e, floor)
    gradients = zip(actual.gradients, native.gradients, exact.gradients, strict=True)
    for i, (a, n, e) in enumerate(gradients):
        assert (a is None) == (n is None), f"gradient {i}: {a}, {n}"
        if a is not None:
            assert a.dtype == n.dtype
            assert_close(f"gradient {i}", a, n, e, floor)
    assert actual.buffers.keys() == native.buffers.keys()
    for key, buffer in actual.buffers.items():
        if not actual.buffers.get("memory_bank.bank", buffer).numel():
            continue  # no bank: never written
        assert_close(key, buffer, native.buffers[key], exact.buffers[key], floor)


def assert_close(what, actual, native, exact, floor) -> None:
    allowed = 2 * error(native, exact) + floor * max(float(exact.abs().max()), 1e-2)
    assert bool(actual.isfinite().all()), what
    assert error(actual, exact) <= allowed, f"{what}: {error(actual, exact):.3g} > {allowed:.3g}"


@pytest.mark.parametrize("name", NAMES)
def test_copies_and_states(name) -> None:
    """deepcopy, pickling and Lightly's own checkpoints give the same next loss."""
    case = CASES[name]
    options = case.options[0]
    mine, other = getattr(ours, name)(**options), getattr(theirs, name)(**options)
    arguments = [case.inputs(case.rows[-1], step) for step in range(2)]
    mine.float(), other.float()
    mine(*arguments[0]), other(*arguments[0])
    copied = copy.deepcopy(mine)
    file = io.BytesIO()
    torch.save(mine, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    mine.load_state_dict(other.state_dict())
    losses = []
    for loss_fn in (mine, copied, loaded):
        torch.manual_seed(0)
        losses.append(loss_fn(*arguments[1]))
    for loss in losses[1:]:
        assert error(loss, losses[0]) <= 1e-6 * float(losses[0].abs().max())
