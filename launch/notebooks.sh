#!/usr/bin/env bash
# Install what is missing and execute notebooks, all of them or those that are named.
#
#     launch/notebooks.sh [NAME ...] [-- PARAMETER=VALUE ...]
#
# NAME is that of a file in notebooks/, without .ipynb.  Copies with outputs come into notebooks/executed/.  PARAMETER=VALUE
# replaces a value of the parameters cell, as in MODEL=tiny-random.  VALUE is a Python literal, or else a text.  A notebook
# that fails ends this with exit code 1.
#
# Without a TPU or GPU a notebook sees eight CPU devices.  It fetches nothing: HF_HUB_OFFLINE=0 TRANSFORMERS_OFFLINE=0 lets
# it take a model from the hub.
#
# PSYNTH_VENV    the folder of the environment, .venv-notebooks if not set
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/commands.sh

names=() values=()
while [[ $# -gt 0 && "$1" != -- ]]; do
  [[ "$1" != --help && "$1" != -h ]] || { help_of launch/notebooks.sh && exit; }
  [[ -f "notebooks/$1.ipynb" ]] || fail "there is no notebooks/$1.ipynb"
  names+=("$1")
  shift
done
[[ $# -eq 0 ]] || values=("${@:2}")
if [[ ${#names[@]} -eq 0 ]]; then
  [[ ${#values[@]} -eq 0 ]] || fail "name the notebook that ${values[0]} is for: each has parameters of its own"
  for file in notebooks/*.ipynb; do
    file="${file##*/}"
    names+=("${file%.ipynb}")
  done
fi

export PSYNTH_VENV="${PSYNTH_VENV:-.venv-notebooks}"
bash launch/setup.sh notebooks
if [[ "$(devices_here)" == cuda ]]; then
  bash launch/setup.sh cuda
fi
for name in "${names[@]}"; do
  "$PSYNTH_VENV/bin/python" launch/execute_notebook.py "notebooks/$name.ipynb" "notebooks/executed/$name.ipynb" "${values[@]}"
done
