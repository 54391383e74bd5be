"""The same tables for pytest-benchmark: `pytest bench/bench_sinkhorn.py`."""

import torch

from .cases import Case


def parametrize(cases: list[Case]):
    """A module's pytest_generate_tests: every case, eager and ours."""

    def pytest_generate_tests(metafunc):
        import pytest

        no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
        marks = {"cpu": [], "cuda": [pytest.mark.gpu, no_gpu]}
        each = [pytest.param(case, id=str(case), marks=marks[case.device]) for case in cases]
        metafunc.parametrize("case", each)
        metafunc.parametrize("contender", ["eager", "ours"])

    return pytest_generate_tests


def run(benchmark, case: Case, contender: str) -> None:
    """Forward and backward of one contender: a few rounds, after its result was checked."""
    from .oracle import Oracle, check, outputs
    from .timers import fresh

    arguments = case.arguments()
    check(Oracle(case, arguments))
    function = getattr(case.problem, contender)

    def step():
        outputs(function, fresh(arguments, case.problem.differentiable))
        if case.device == "cuda":
            torch.cuda.synchronize()

    benchmark.group = str(case)
    benchmark.pedantic(step, rounds=5, warmup_rounds=2)
