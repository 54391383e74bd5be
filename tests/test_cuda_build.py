"""Every CUDA source compiles for every architecture, warnings as errors, within its registers.

tests/cuda_budget.json holds the registers of each kernel, the largest over types and widths,
rounded up to the eight that hardware hands out; no kernel may spill.
After a deliberate change: `python tests/test_cuda_build.py` writes it anew.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path.name for path in (ROOT / "csrc/cuda").glob("*.cu"))
ARCHITECTURES = ["80", "86", "89", "90", "100", "120"]
BUDGET = Path(__file__).parent / "cuda_budget.json"
NVCC = shutil.which(os.environ.get("CUDACXX", "nvcc"))

_ENTRY = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for 'sm_(?P<arch>\d+)\w?'.*?"
    r"(?P<spills>\d+) bytes spill stores.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def resources(source: str, folder: Path) -> dict[str, dict[str, int]]:
    """Registers by kernel and architecture; a spill or a warning raises."""
    # Device code only, one real architecture each: what ptxas reports is all that is wanted.
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
    command = [NVCC, "-std=c++17", "-O3", "-Werror", "all-warnings", "-Xcompiler=-Wall,-Wextra"]
    command += ["--resource-usage", "--threads", "2", *targets, "-fatbin"]
    command += [str(ROOT / "csrc/cuda" / source), "-o", str(folder / f"{source}.fatbin")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr + run.stdout
    found: dict[str, dict[str, int]] = {}
    for entry in _ENTRY.finditer(run.stdout + run.stderr):
        name = kernel_name(entry["kernel"])
        assert entry["spills"] == "0", f"{name} spills on sm_{entry['arch']}"
        registers = found.setdefault(name, {})
        used = -(-int(entry["registers"]) // 8) * 8
        registers[entry["arch"]] = max(registers.get(entry["arch"], 0), used)
    assert found, run.stderr
    return found


def kernel_name(mangled: str) -> str:
    """The kernel's own name, which its length precedes: ..13sinkhorn_stepI.. -> sinkhorn_step."""
    for match in re.finditer(r"(?=(\d\d)([a-z][a-z_]*)[A-Z])", mangled):
        if int(match[1]) == len(match[2]):
            return match[2]
    raise ValueError(mangled)


@pytest.mark.slow
@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
@pytest.mark.parametrize("source", SOURCES)
def test_registers_within_budget_and_no_spills(source, tmp_path):
    budget = json.loads(BUDGET.read_text())[source]
    found = resources(source, tmp_path)
    assert found.keys() == budget.keys()
    over = {
        (kernel, arch): (used, budget[kernel][arch])
        for kernel, by_arch in found.items()
        for arch, used in by_arch.items()
        if used > budget[kernel][arch]
    }
    assert not over, f"(kernel, architecture): (registers, budget) {over}"


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        figures = {source: resources(source, Path(folder)) for source in SOURCES}
    BUDGET.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")
