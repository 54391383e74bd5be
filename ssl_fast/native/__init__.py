"""Loads the compiled modules `_cpu` and `_cuda` and passes them pointers, sizes and the stream."""

import functools
import json
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch  # before the modules: they share its OpenMP runtime
from torch import Tensor

_INSTRUCTION_SETS = ("baseline", "avx2", "avx512")
_BY_TORCH = {"AVX2": "avx2", "AVX512": "avx512"}


@functools.cache
def cpu() -> ModuleType:
    """`_cpu`, using the instruction set that torch uses; ATEN_CPU_CAPABILITY limits both."""
    module = import_module("ssl_fast._cpu")
    wanted = _BY_TORCH.get(torch.backends.cpu.get_cpu_capability(), "baseline")
    allowed = _INSTRUCTION_SETS[: _INSTRUCTION_SETS.index(wanted) + 1]
    module.select([name for name in module.instruction_sets() if name in allowed][-1])
    return module


DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


def pointer(tensor: Tensor | None, index: int = 0) -> int:
    """The address of its first element, or of a contiguous vector's `index`; 0 for None."""
    if tensor is None:
        return 0
    return tensor.data_ptr() + index * tensor.element_size() if index else tensor.data_ptr()


def matrix(tensor: Tensor) -> tuple[int, int, int, int, int]:
    """Address, rows, columns, row stride and type, as every binding takes a matrix."""
    rows, columns = tensor.shape
    return tensor.data_ptr(), rows, columns, tensor.stride()[0], DTYPE_CODES[tensor.dtype]


@functools.cache
def cuda() -> ModuleType:
    return import_module("ssl_fast._cuda")


def cuda_kernels() -> ModuleType:
    """The wrappers of `_cuda`, imported when a CUDA tensor comes."""
    return import_module("ssl_fast.native_cuda")


@functools.cache
def why_not(device_type: str) -> str | None:
    """Why the compiled kernels cannot run on "cpu" or "cuda" tensors; None when they can."""
    try:
        module = cpu() if device_type == "cpu" else cuda()
    except ImportError as error:
        return build_record().get(device_type) or f"ssl_fast._{device_type} does not load: {error}"
    return None if device_type == "cpu" else _why_no_gpu(module)


@functools.cache
def build_record() -> dict[str, str | None]:
    """What setup.py built, and for a backend that it left out, the reason."""
    path = Path(__file__).parents[1] / "_build.json"
    if not path.exists():
        reason = "ssl_fast is not installed; run `pip install -e .` in the clone"
        return {"cpu": reason, "cuda": reason}
    return json.loads(path.read_text())


def _why_no_gpu(module: ModuleType) -> str | None:
    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA; install a CUDA build of torch"
    if error := module.device_error():
        toolkit = build_record().get("nvcc")
        return f"it needs an NVIDIA GPU and a driver for CUDA {toolkit}; CUDA says: {error}"
    archs = (build_record().get("cuda_archs") or "").split(";")
    oldest = min((int(arch.split("-")[0].rstrip("af")) for arch in archs if arch), default=0)
    major, minor = torch.cuda.get_device_capability()
    if 10 * major + minor < oldest:
        return (
            f"built for compute capability {oldest / 10} and newer, this GPU has {major}.{minor}; "
            "set TORCH_CUDA_ARCH_LIST and reinstall ssl_fast"
        )
    return None
