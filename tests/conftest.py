"""Fixtures: the backend under test, proven to have run; fresh memory full of NaN; seeds."""

import contextlib
from collections.abc import Iterator

import pytest
import torch

import ssl_fast
from ssl_fast import backend as dispatch

with contextlib.suppress(ImportError):
    from hypothesis import HealthCheck, settings

    settings.register_profile(
        "ssl_fast",
        derandomize=True,
        deadline=None,
        max_examples=30,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    settings.load_profile("ssl_fast")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["reference", "native"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a CPU backend; the test fails unless all of its work ran there."""
    name = request.param
    if reason := dispatch.why_not(name, "cpu", torch.float32):
        pytest.skip(reason)  # test_backend.py fails then, unless SSL_FAST_ALLOW_NO_NATIVE=1
    with ssl_fast.set_backend(name), dispatch.trace() as ran:
        yield name
    assert request.node.skipped or {used for _, used in ran} == {name}, f"{name}: ran {ran}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    item.skipped = report.skipped
    return report


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Here and in the processes started from here: a busy machine makes two slower than one."""
    from threadpoolctl import threadpool_limits

    count = torch.get_num_threads()
    with threadpool_limits(1), pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(count)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """torch.empty and its kin return NaN, so that an entry left unwritten shows."""
    previous = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.use_deterministic_algorithms(previous)


@pytest.fixture
def machine():
    """The emulated GPU, for tests of the CUDA kernels."""
    from cuda_harness import the_machine

    return the_machine()


@pytest.fixture
def kernels(machine) -> Iterator[None]:
    """The emulated module behind `ssl_fast.native.cuda`."""
    from cuda_harness import harness

    with harness.installed(machine):
        yield
