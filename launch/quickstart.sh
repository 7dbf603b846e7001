#!/usr/bin/env bash
# Install what is missing and run the demo: three reports are read as caches, and as pasted text, and not at all.
#
#     launch/quickstart.sh [arguments of psynth run]
#
# Without arguments it asks a built-in question, whose answer only one of three reports has.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

bash "$root/launch/setup.sh" demo

if [[ $# -eq 0 ]]; then
  set -- "Why did the checkout service fail?" --compare --max-new-tokens 64 \
    --branch "Storage report: the disk of host db-2 filled up at 03:10. 100% of its space was used by old log files, and the database could no longer write." \
    --branch "Network report: all links are healthy. No packet loss was seen, and latency stayed below 2 ms all night." \
    --branch "Checkout report: the checkout service failed from 03:12 on. Every order ended with the error 'database write failed'."
fi
venv="${PSYNTH_VENV:-.venv}"
[[ "$venv" == /* ]] || venv="$root/$venv"
exec "$venv/bin/psynth" run "$@"
