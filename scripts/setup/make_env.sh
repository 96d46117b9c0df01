#!/usr/bin/env bash
# Makes the environment that the Makefile and .ci/run use, or does nothing if it is as it should be.
#
#   VENV=.venv            where
#   PYTHON=python3.12     with which interpreter (3.11 or 3.12); default: the first of python3.11, python3.12, python3
#   TORCH_INDEX=URL       where to take torch and torchvision from, e.g. an index of CPU builds; default: pip's own
set -euo pipefail
cd "$(dirname "$0")/../.."

VENV="${VENV:-.venv}"
CONSTRAINTS=requirements/constraints.txt
EXTRAS=dev,lora,qlora,deepspeed,wandb,eval,ray
TORCHCODEC=torchcodec==0.13.0 # not in the constraints, which also serve vLLM, and vLLM asks for one that needs CUDA

suits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1; }

find_python() {
    for candidate in ${PYTHON:-python3.11 python3.12 python3}; do
        if suits "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "No Python 3.11 or 3.12 among: ${PYTHON:-python3.11 python3.12 python3}. Name one: make env PYTHON=/path/to/python3.11" >&2
    return 1
}

pinned() { grep -E "^$1==" "$CONSTRAINTS"; }

# The environment is as it should be when it was finished for these very files.
wanted="$(cat pyproject.toml "$CONSTRAINTS" scripts/setup/* | sha256sum | cut -d' ' -f1) $PWD ${TORCH_INDEX:-}"
stamp="$VENV/.visd-stamp"
if [[ -f "$stamp" && "$(cat "$stamp")" == "$wanted" ]] && "$VENV/bin/python" -c '' 2>/dev/null; then
    exit 0
fi

started=$SECONDS
if ! suits "$VENV/bin/python" || ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
    python="$(find_python)"
    echo "Making $VENV with $("$python" --version)"
    "$python" -m venv --clear "$VENV"
fi
rm -f "$stamp"
install=("$VENV/bin/python" -m pip install --disable-pip-version-check --no-input --constraint "$CONSTRAINTS")
if [[ ! -t 1 ]]; then install+=(--quiet --quiet); fi # progress bars for a person, errors alone for a log

echo "Installing $(pinned torch) and $(pinned torchvision) (the CPU builds: under a minute; the CUDA builds: some gigabytes)"
from=()
if [[ -n "${TORCH_INDEX:-}" ]]; then from=(--index-url "$TORCH_INDEX"); fi
# torch first, then torchvision by itself: nothing that comes later may exchange the build of torch.
"${install[@]}" "${from[@]}" "$(pinned torch)"
"${install[@]}" "${from[@]}" --no-deps "$(pinned torchvision)"

echo "Installing visd with the extras $EXTRAS"
"${install[@]}" --editable ".[$EXTRAS]"
"$VENV/bin/python" scripts/setup/repair_torchvision.py install

# Beside the environment, not in it: where torchcodec can be imported but not loaded, other libraries break.
echo "Installing $TORCHCODEC in $VENV/torchcodec, for its tests and benchmark"
rm -rf "$VENV/torchcodec"
"${install[@]}" --no-deps --target "$VENV/torchcodec" "$TORCHCODEC" ||
    echo "Left out: torchcodec has no build for this machine. Its test will be skipped."
echo "$wanted" >"$stamp"
echo "Environment ready in $VENV after $((SECONDS - started)) s"
