#!/usr/bin/env bash
# Train an adapter for SmolLM2-135M on one GPU, resumably, for some minutes; launch/adapter.sh --help has the options.
#
# Installs nothing into its Python and needs no network: what launch/pack.sh has packed is taken from pack/.
#
# PSYNTH_PYTHON   the Python to use, 3.12; if not set, that of .venv, else python3
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$root/launch/commands.sh"

exec "$(python_here)" "$root/launch/adapter.py" "$@" # in place of this script, so that signals reach it
