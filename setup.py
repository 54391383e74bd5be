"""Drives CMake with Ninja. CMakeLists.txt is the only list of native sources.

A missing compiler is no error: the package installs without that backend, and `_build.json`
keeps the reason for `python -m ssl_fast.info`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
CPU_PROBE = "#include <Python.h>\n#include <vector>\nint probe() { return PY_MAJOR_VERSION; }\n"
CUDA_PROBE = "__global__ void probe() {}\nvoid launch() { probe<<<1, 1>>>(); }\n"
ARCHITECTURES = ("80", "86", "89", "90", "100", "120")
ARCHITECTURE_NAMES = {
    "Ampere": "8.0 8.6+PTX",
    "Ada": "8.9+PTX",
    "Hopper": "9.0+PTX",
    "Blackwell": "10.0 12.0+PTX",
}


class BuildNative(build_ext):
    def run(self) -> None:
        editable = self.inplace or self.editable_mode
        package = (ROOT if editable else Path(self.build_lib).resolve()) / "ssl_fast"
        package.mkdir(parents=True, exist_ok=True)
        record = build_native(package)
        (package / "_build.json").write_text(json.dumps(record, indent=2) + "\n")
        for backend in ("cpu", "cuda"):
            print(f"ssl_fast: native {backend}: {record[backend] or 'built'}", flush=True)
            # An earlier editable build may have left a module that this one could not make.
            for stale in package.glob(f"_{backend}.*.so") if record[backend] else ():
                stale.unlink()

    def get_outputs(self) -> list[str]:
        package = Path(self.build_lib) / "ssl_fast"
        return [str(package / "_build.json"), *map(str, package.glob("_c*.so"))]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


def build_native(package: Path) -> dict[str, str | None]:
    """Builds what can be built into `package`; says for each backend why it is off, or None."""
    nvcc = find_nvcc()
    no_cpu = why_no_cpu()
    no_cuda = no_cpu or why_no_cuda(nvcc)
    if no_cuda and cuda_wish() == "1":
        raise SystemExit(f"SSL_FAST_CUDA=1, but {no_cuda}")
    record = {"cpu": no_cpu, "cuda": no_cuda, "compiler": None, "nvcc": None, "cuda_archs": None}
    if no_cpu:
        return record
    record["compiler"] = first_line([*find_cxx(), "--version"])
    options = [f"-DSSL_FAST_WERROR={os.environ.get('SSL_FAST_WERROR', '0')}"]
    if not no_cuda:
        archs = cuda_architectures(os.environ.get("TORCH_CUDA_ARCH_LIST", ""), nvcc)
        record |= {"nvcc": nvcc_release(nvcc), "cuda_archs": archs}
        options += ["-DSSL_FAST_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={nvcc}"]
        options += [f"-DCMAKE_CUDA_ARCHITECTURES={archs}"]
    run_cmake(package, options)
    return record


def run_cmake(package: Path, options: list[str]) -> None:
    import pybind11

    cmake, ninja = find_tool("cmake"), find_tool("ninja")
    build = ROOT / "build" / f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    # Build isolation moves cmake and pybind11 at every install: forget the configuration, keep the
    # objects.
    (build / "CMakeCache.txt").unlink(missing_ok=True)
    for compiler in (build / "CMakeFiles").glob("[0-9]*"):
        shutil.rmtree(compiler)
    environment = os.environ | {"CXX": shlex.join(find_cxx())}
    configure = [cmake, "-S", ROOT, "-B", build, "-G", "Ninja", *options]
    configure += [f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DPython_EXECUTABLE={sys.executable}"]
    configure += [f"-DPython_INCLUDE_DIR={python_include()}"]
    configure += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count())
    subprocess.run(list(map(str, configure)), check=True, env=environment)
    subprocess.run([cmake, "--build", build, "--parallel", jobs], check=True)
    # Modules are replaced whole: writing into one that a process has mapped would crash it.
    with tempfile.TemporaryDirectory(dir=package) as fresh:
        subprocess.run([cmake, "--install", build, "--strip", "--prefix", fresh], check=True)
        for module in Path(fresh).iterdir():
            module.replace(package / module.name)


def find_tool(name: str) -> str:
    # Without build isolation, an environment that is not activated is not on PATH.
    found = shutil.which(name) or shutil.which(name, path=Path(sys.executable).parent)
    if not found:
        raise SystemExit(f"{name} is missing: pip install {name}, or install with build isolation")
    return found


def find_cxx() -> list[str]:
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    return [next((name for name in ("g++", "c++", "clang++") if shutil.which(name)), "g++")]


def python_include() -> str | None:
    """The folder of Python.h: this Python's own, else one on CPATH, as the compiler takes it."""
    folders = [sysconfig.get_paths()["include"], *os.environ.get("CPATH", "").split(os.pathsep)]
    return next((path for path in folders if path and Path(path, "Python.h").exists()), None)


def find_nvcc() -> str | None:
    if chosen := os.environ.get("CUDACXX"):
        return shutil.which(chosen)
    if home := os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        return shutil.which(f"{home}/bin/nvcc")
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def cuda_wish() -> str:
    wish = os.environ.get("SSL_FAST_CUDA", "auto")
    if wish not in ("auto", "0", "1"):
        raise SystemExit(f"SSL_FAST_CUDA={wish!r}: expected auto, 0 or 1")
    return wish


def why_no_cpu() -> str | None:
    if sys.platform == "win32":
        return "it is not built on Windows; use Linux or WSL"
    cxx = find_cxx()
    if not shutil.which(cxx[0]):
        return f"no C++ compiler was found ({cxx[0]}); install g++ and reinstall ssl_fast"
    if not python_include():
        return "Python.h was not found; install python3-dev and reinstall ssl_fast"
    flags = ["-std=c++17", "-fPIC", "-shared", f"-I{python_include()}"]
    if sys.platform == "darwin":
        flags += ["-undefined", "dynamic_lookup"]
    return why_not_compiled([*cxx, *flags], CPU_PROBE, ".cpp")


def why_no_cuda(nvcc: str | None) -> str | None:
    if cuda_wish() == "0":
        return "SSL_FAST_CUDA=0 when ssl_fast was installed"
    if nvcc is None:
        return "nvcc was not found; install the CUDA toolkit, set CUDA_HOME and reinstall ssl_fast"
    flags = ["-cudart", "static", "-shared", "-Xcompiler=-fPIC"]
    return why_not_compiled([nvcc, *flags], CUDA_PROBE, ".cu")


def why_not_compiled(command: list[str], source: str, suffix: str) -> str | None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"probe{suffix}"
        path.write_text(source)
        command = [*command, str(path), "-o", str(path.with_suffix(".so"))]
        run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode == 0:
        return None
    said = (run.stderr or run.stdout).strip().splitlines() or ["no message"]
    return f"{command[0]} could not compile a one-line file: {said[0]}"


def cuda_architectures(wanted: str, nvcc: str) -> str:
    """TORCH_CUDA_ARCH_LIST ("8.0 9.0a;12.0+PTX", "Hopper") as CMake writes it; "" is default."""
    if not wanted.strip():
        known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout
        real = [arch for arch in ARCHITECTURES if f"compute_{arch}\n" in f"{known}\n"]
        return ";".join([*(f"{arch}-real" for arch in real), f"{real[-1]}-virtual"])
    for name, numbers in ARCHITECTURE_NAMES.items():
        wanted = wanted.replace(name, numbers)
    archs = []
    for word in re.split(r"[\s;,]+", wanted.strip()):
        match = re.fullmatch(r"(\d+)\.(\d[af]?)(\+PTX)?", word)
        if not match:
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST holds {word!r}: expected 9.0 or 9.0+PTX")
        number = match[1] + match[2]
        archs += [f"{number}-real"] + ([f"{number}-virtual"] if match[3] else [])
    return ";".join(dict.fromkeys(archs))


def nvcc_release(nvcc: str) -> str:
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    match = re.search(r"release ([\d.]+)", text)
    return match[1] if match else "unknown"


def first_line(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout.partition("\n")[0]


def packages() -> dict[str, str]:
    """Package -> folder. Top-level triton_kernels would shadow the module that Triton ships."""
    inside = find_packages(include=["ssl_fast", "ssl_fast.*"])
    top = find_packages(include=["triton_kernels", "triton_kernels.*", "bench", "bench.*"])
    folders = {name: name.replace(".", "/") for name in inside}
    return folders | {f"ssl_fast.{name}": name.replace(".", "/") for name in top}


if __name__ == "__main__":
    setup(
        packages=list(packages()),
        package_dir=packages(),
        # Names the wheel after this Python and platform; the modules are CMake's.
        ext_modules=[Extension("ssl_fast._cpu", sources=[])],
        cmdclass={"build_ext": BuildNative},
    )
