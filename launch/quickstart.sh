#!/usr/bin/env bash
# Install what is missing and run the demo: three workers answer, a synthesizer reads their caches.
#
#     launch/quickstart.sh [arguments of psynth run]
#
# Without arguments it asks a built-in question.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

bash "$root/launch/setup.sh" demo

if [[ $# -eq 0 ]]; then
  set -- "Why is the sky blue?" --workers 3
fi
venv="${PSYNTH_VENV:-.venv}"
[[ "$venv" == /* ]] || venv="$root/$venv"
exec "$venv/bin/psynth" run "$@"
