#!/usr/bin/env bash
# Train on a TPU slice of a GKE cluster that xpk has made.
# launch/gke_xpk.sh --help lists the options, docs/launch.md explains them.  PSYNTH_PYTHON names another Python than python3.
set -euo pipefail
exec "${PSYNTH_PYTHON:-python3}" -B "$(dirname "${BASH_SOURCE[0]}")/cloud.py" gke_xpk "$@"
