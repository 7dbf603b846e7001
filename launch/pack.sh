#!/usr/bin/env bash
# Pack what launch/adapter.sh needs on a machine without a network; launch/pack.sh --help has the options.
#
# PSYNTH_PYTHON   the Python to use, which has pip; if not set, that of .venv, else python3
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$root/launch/commands.sh"

export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$(python_here)" "$root/launch/pack.py" "$@"
