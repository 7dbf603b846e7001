#!/usr/bin/env bash
# Install what is missing and execute notebooks, all of them or those that are named.
#
#     launch/notebooks.sh [NAME ...] [-- PARAMETER=VALUE ...]
#
# NAME is that of a file in notebooks/, without .ipynb.  Copies with outputs come into notebooks/executed/.  PARAMETER=VALUE
# replaces a value of the parameters cell, as in MODEL=tiny-random.  A notebook that fails ends this with exit code 1.
#
# Without a TPU or GPU a notebook sees eight CPU devices.  It fetches nothing: HF_HUB_OFFLINE=0 TRANSFORMERS_OFFLINE=0 lets
# it take a model from the hub.
#
# PSYNTH_VENV    the folder of the environment, .venv-notebooks if not set
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

names=() values=()
while [[ $# -gt 0 && "$1" != -- ]]; do
  [[ -f "notebooks/$1.ipynb" ]] || { echo "there is no notebooks/$1.ipynb" >&2 && exit 2; }
  names+=("$1")
  shift
done
[[ $# -eq 0 ]] || values=("${@:2}")
if [[ ${#names[@]} -eq 0 ]]; then
  for file in notebooks/*.ipynb; do
    file="${file##*/}"
    names+=("${file%.ipynb}")
  done
fi

export PSYNTH_VENV="${PSYNTH_VENV:-.venv-notebooks}"
bash launch/setup.sh notebooks
for name in "${names[@]}"; do
  "$PSYNTH_VENV/bin/python" launch/execute_notebook.py "notebooks/$name.ipynb" "notebooks/executed/$name.ipynb" "${values[@]}"
done
