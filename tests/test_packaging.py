"""What a user installs: every way in, what it leaves out, and what importing it costs."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
INSTALLED = ROOT / "tests" / "installed.py"

IMPORT = """
import json, sys, time
import torch
start = time.process_time()
import ssl_fast
print(json.dumps({"seconds": time.process_time() - start, "modules": list(sys.modules)}))
"""

OPENMP = """
import torch
from ssl_fast.functional import sinkhorn
sinkhorn(torch.randn(512, 512))
paths = {line.split()[-1] for line in open("/proc/self/maps") if ".so" in line}
print(*sorted(path for path in paths if any(name in path for name in ("gomp", "libomp", "iomp"))))
"""


def run(*command: object, **options) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def install(folder: Path, *what: object, **environment: str) -> Path:
    """A fresh environment that borrows this one's packages; the path of its Python."""
    venv.create(folder)
    python = folder / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip()
    lender = Path(importlib.util.find_spec("torch").origin).parents[1]
    Path(site, "borrowed.pth").write_text(f"{lender}\n")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps"]
    run(*pip, "--ignore-installed", *what, env=os.environ | environment)
    return python


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "build", "--sdist", "--outdir", folder, ROOT)
    return next(folder.glob("ssl_fast-*.tar.gz"))


@pytest.mark.slow
def test_sdist_to_wheel_to_install(sdist, tmp_path):
    environment = os.environ | {"TORCH_CUDA_ARCH_LIST": "9.0+PTX", "MAX_JOBS": "2"}
    wheel = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", tmp_path]
    run(*wheel, sdist, env=environment)
    python = install(tmp_path / "venv", next(tmp_path.glob("ssl_fast-*.whl")))
    package = Path(run(python, INSTALLED, "native", cwd=tmp_path).strip()).parent
    assert tmp_path in package.parents
    info = json.loads(run(python, "-m", "ssl_fast.info", "--json", cwd=tmp_path))
    assert info["backends"]["native cpu"] is None
    if shutil.which("nvcc"):
        assert info["cuda"]["architectures"] == "90-real;90-virtual"
    else:
        assert "nvcc" in info["backends"]["native cuda"]
    assert "usage: ssl-fast" in run(tmp_path / "venv" / "bin" / "ssl-fast", "--help", cwd=tmp_path)
    assert (package / "py.typed").exists()
    shipped = {path.relative_to(package) for path in package.rglob("*.yaml")}
    source = ROOT / "ssl_fast"
    assert shipped == {path.relative_to(source) for path in source.rglob("*.yaml")} != set()


@pytest.mark.slow
def test_editable_install_runs_from_the_clone(sdist, tmp_path):
    shutil.unpack_archive(sdist, tmp_path)
    clone = next(tmp_path.glob("ssl_fast-*"))
    python = install(tmp_path / "venv", "-e", clone, SSL_FAST_CUDA="0")
    for folder in (tmp_path, clone):
        assert str(clone) in run(python, INSTALLED, cwd=folder)
    info = json.loads(run(python, "-m", "ssl_fast.info", "--json", cwd=clone))
    assert info["backends"]["native cpu"] is None
    assert "SSL_FAST_CUDA=0" in info["backends"]["native cuda"]


@pytest.mark.slow
def test_install_without_a_compiler_says_so(sdist, tmp_path):
    python = install(tmp_path / "venv", sdist, CXX="/nonexistent/g++")
    run(python, INSTALLED, cwd=tmp_path)
    text = run(python, "-m", "ssl_fast.info", cwd=tmp_path)
    assert text.count("off: no C++ compiler was found (/nonexistent/g++)") == 2


@pytest.mark.slow
def test_cuda_that_is_asked_for_and_missing_is_an_error(sdist, tmp_path):
    with pytest.raises(AssertionError, match="SSL_FAST_CUDA=1, but nvcc was not found"):
        install(tmp_path / "venv", sdist, SSL_FAST_CUDA="1", CUDACXX="/nonexistent/nvcc")


def test_import_is_quick_and_lean():
    runs = [json.loads(run(sys.executable, "-c", IMPORT)) for _ in range(3)]
    assert min(each["seconds"] for each in runs) < 0.3
    for name in ("triton", "triton_kernels", "lightning", "matplotlib"):
        assert name not in runs[0]["modules"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/maps")
def test_one_openmp_runtime():
    runtimes = run(sys.executable, "-c", OPENMP).split()
    assert len(runtimes) <= 1, f"several OpenMP runtimes in one process: {runtimes}"


def test_instruction_sets_share_no_inline_function():
    """The linker keeps one copy of a weak symbol for all: it may be the AVX-512 one."""
    if not shutil.which("nm"):
        pytest.skip("needs nm, of binutils")
    build = next((ROOT / "build").glob(f"*-{sys.implementation.cache_tag}"), None)
    if build is None:
        pytest.skip("needs the build folder that an editable install leaves")
    weak = {
        target.name: {name for path in target.rglob("*.o") for name in weak_functions(path)}
        for target in (build / "CMakeFiles").glob("*.dir")
        if target.name.startswith(("kernels_", "_cpu"))
    }
    assert len(weak) >= 2
    for wide in weak.keys() & {"kernels_avx2.dir", "kernels_avx512.dir"}:
        others = set().union(*(names for target, names in weak.items() if target != wide))
        assert not weak[wide] & others, wide


def weak_functions(path: Path) -> list[str]:
    symbols = [line.split()[-2:] for line in run("nm", "--defined-only", path).splitlines()]
    return [name for kind, name in symbols if kind == "W"]


@pytest.mark.parametrize(
    ("wanted", "archs"),
    [
        ("9.0", "90-real"),
        ("8.0 9.0a;12.0+PTX", "80-real;90a-real;120-real;120-virtual"),
        ("Hopper", "90-real;90-virtual"),
    ],
)
def test_arch_list_takes_the_forms_that_torch_takes(wanted, archs):
    assert setup_module().cuda_architectures(wanted, "nvcc") == archs


def test_arch_list_refuses_nonsense():
    with pytest.raises(SystemExit, match="TORCH_CUDA_ARCH_LIST holds 'sm_90'"):
        setup_module().cuda_architectures("sm_90", "nvcc")


def setup_module():
    spec = importlib.util.spec_from_file_location("ssl_fast_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
