#!/usr/bin/env bash
# Train on all VMs of a TPU slice of Compute Engine.
# launch/compute_engine.sh --help lists the options, docs/launch.md explains them.  PSYNTH_PYTHON names another Python than python3.
set -euo pipefail
exec "${PSYNTH_PYTHON:-python3}" -B "$(dirname "${BASH_SOURCE[0]}")/cloud.py" compute_engine "$@"
