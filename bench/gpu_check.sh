#!/usr/bin/env bash
# Builds, tests and benchmarks ssl_fast on a machine with a GPU; `gpu_check.sh --help` says how.
set -uo pipefail

usage() {
    cat <<'TEXT'
usage: bench/gpu_check.sh OUT_DIR

Builds ssl_fast for this machine's GPU, runs the tests, compute-sanitizer and the benchmarks.
Takes less than 8 minutes and needs no network: it uses the packages of the Python that it finds.

  bash bench/gpu_check.sh results
  PYTHON=/path/to/python bash bench/gpu_check.sh results
  SECONDS_IN_ALL=900 bash bench/gpu_check.sh results

Needs: torch with CUDA, nvcc, a C++ compiler, setuptools, cmake, ninja, pybind11, pytest, hypothesis.
Uses where present: Triton, pytest-xdist, compute-sanitizer, Lightly, matplotlib.
Installs in a temporary environment; the clone's compiled modules are rebuilt for this GPU alone
(`pip install -e .` brings the others back).

OUT_DIR then holds summary.txt, log.txt, tests.txt, sanitizer.txt and bench_cuda.md .json .csv .png.
Exit status: 0 when no step failed. A step that cannot run here is skipped, with its reason.
TEXT
}

case "${1:-}" in
-h | --help) usage; exit 0 ;;
"" | -*) usage >&2; exit 2 ;;
esac

total=${SECONDS_IN_ALL:-465}
SECONDS=0
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
base=${PYTHON:-$(command -v python3 || command -v python)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python="$work/venv/bin/python"
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
failures=0
rm -f "$out"/{summary,log,tests,sanitizer}.txt "$out"/bench_cuda.{md,json,csv,png}

say() { echo "$*" | tee -a "$out/summary.txt"; }

# record STEP SECONDS RESULT
record() {
    printf '%-14s %4s s  %s\n' "$1" "$2" "$3" | tee -a "$out/summary.txt"
    case "$3" in failed*) failures=$((failures + 1)) ;; esac
}

# step NAME LIMIT LOG COMMAND...: at most LIMIT seconds of 465, and no more than are left
step() {
    local name=$1 log="$out/$3" start=$SECONDS status line
    local limit=$(($2 * total / 465)) left=$((total - SECONDS))
    shift 3
    if ((left < 10)); then
        record "$name" 0 "skipped because no time is left of $total s"
        return 1
    fi
    ((limit > left)) && limit=$left
    printf '\n=== %s\n' "$name" >>"$log"
    line=$(wc -l <"$log")
    timeout --kill-after=5 "$limit" "$@" >>"$log" 2>&1
    status=$?
    if ((status == 0)); then
        record "$name" $((SECONDS - start)) ok
    elif [[ $name == *tests && $status -eq 5 ]]; then
        record "$name" $((SECONDS - start)) "skipped because no test is marked so"
    elif [[ $name == *check ]] && tail -n "+$line" "$log" | grep -q "not supported"; then
        record "$name" $((SECONDS - start)) "skipped because compute-sanitizer cannot use this GPU"
    elif ((status == 124 || status == 137)); then
        record "$name" $((SECONDS - start)) "failed: over its $limit s"
    else
        record "$name" $((SECONDS - start)) "failed: exit status $status"
    fi
    if ((status != 0)); then
        tail -n "+$line" "$log" >"$work/tail"
        { grep -m 6 'rror:' "$work/tail"; tail -n 8 "$work/tail"; } | cut -c -160 |
            sed 's/^/    | /' >>"$out/summary.txt"
    fi
    return "$status"
}

has() { "$base" -c "import importlib.util, sys; sys.exit(not importlib.util.find_spec('$1'))"; }

# What is missing, in words; fails when that leaves nothing to check.
environment() {
    local missing=() optional=() module
    for module in torch numpy setuptools cmake ninja pybind11 pytest hypothesis; do
        has "$module" || case "$module" in
        cmake | ninja) command -v "$module" >/dev/null || missing+=("$module") ;;
        *) missing+=("$module") ;;
        esac
    done
    command -v nvcc >/dev/null || [ -x /usr/local/cuda/bin/nvcc ] || missing+=("nvcc")
    for module in triton lightly faiss ot jsonargparse matplotlib xdist pytest_benchmark; do
        has "$module" || optional+=("$module")
    done
    [ -n "$sanitizer" ] || optional+=("compute-sanitizer")
    ((${#optional[@]})) && say "missing, what needs it is left out: ${optional[*]}"
    gpu=$("$base" -c 'import torch; print(torch.cuda.get_device_name(), "%d.%d" % torch.cuda.get_device_capability())' 2>>"$out/log.txt")
    [ -n "$gpu" ] || missing+=("a GPU that PyTorch can use")
    if ((${#missing[@]})); then
        local text
        printf -v text '%s, ' "${missing[@]}"
        record environment "$SECONDS" "failed: missing ${text%, }"
        return 1
    fi
    record environment "$SECONDS" "ok: $gpu"
}

# An environment that borrows the packages of $base, so that nothing is installed into that one.
borrow() {
    "$base" -m venv --without-pip --system-site-packages "$work/venv" || return
    "$python" - "$("$base" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')" <<'CODE'
import pathlib, sys, sysconfig
line = f"import site; site.addsitedir({sys.argv[1]!r})\n"
pathlib.Path(sysconfig.get_paths()["purelib"], "borrowed.pth").write_text(line)
CODE
}

say "ssl_fast on $(date -u +%Y-%m-%dT%H:%MZ), commit $(git -C "$root" rev-parse --short=12 HEAD 2>/dev/null || echo none)"
gpu=""
environment
cd "$root" || exit 2
# The tests must find the installed package, not the folder that they are started from.
export PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 SSL_FAST_CUDA=${SSL_FAST_CUDA:-1}
if [ -n "$gpu" ]; then
    export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-${gpu##* }}
fi
built=""
if ! borrow >>"$out/log.txt" 2>&1; then
    record build 0 "failed: $base -m venv"
elif step build 120 log.txt "$base" -m pip --python "$python" install \
    --no-build-isolation --no-deps --no-index --disable-pip-version-check -e .; then
    built=yes
fi

# off_gpu, on_gpu NAME LIMIT LOG COMMAND...: a step, or why it cannot run
off_gpu() {
    if [ -n "$built" ]; then
        step "$@"
    else
        record "$1" 0 "skipped because the build failed"
    fi
}

on_gpu() {
    if [ -n "$gpu" ]; then
        off_gpu "$@"
    else
        record "$1" 0 "skipped because there is no GPU"
    fi
}

sanitize() {
    if [ -n "$gpu" ] && [ -z "$sanitizer" ]; then
        record "$1" 0 "skipped because compute-sanitizer is not installed"
    else
        # Without the caching allocator every tensor is an allocation of its own: overruns show.
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 on_gpu "$1" "$2" sanitizer.txt "$sanitizer" --tool "$1" \
            --error-exitcode 9 "$python" -m ssl_fast.bench.every_kernel native "${@:3}"
    fi
}

workers=()
has xdist && workers=(-n 6)
pytest=("$python" -m pytest -q -ra -p no:cacheprovider)
has pytest_benchmark && pytest+=(--benchmark-disable)
off_gpu info 30 log.txt "$python" -m ssl_fast.info &&
    "$python" -m ssl_fast.info >>"$out/summary.txt" 2>>"$out/log.txt"
on_gpu "gpu tests" 130 tests.txt "${pytest[@]}" "${workers[@]}" -m "gpu and not slow"
on_gpu bench 160 log.txt "$python" -m ssl_fast.bench --device cuda --out "$out" --time-limit 130
sanitize memcheck 45 --large
sanitize racecheck 45
has xdist && workers=(-n auto)
rest="not gpu and not slow and not interpreter"
off_gpu "other tests" 80 tests.txt "${pytest[@]}" "${workers[@]}" -m "$rest and not aot and not emulated"
off_gpu "compile tests" 120 tests.txt "${pytest[@]}" "${workers[@]}" -m "$rest and (aot or emulated)"

say "$failures failed, $SECONDS s in all; files: $(cd "$out" && echo *)"
((failures == 0))
