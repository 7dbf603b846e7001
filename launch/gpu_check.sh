#!/usr/bin/env bash
# All that only a GPU can show, in two parts of at most two and a half minutes each on an H100.
#
#     launch/gpu_check.sh [--part a|b|all] [--miniature] [--into FOLDER]
#
# Part a: attention forward and backward against the oracle, caches of more than 2^31 elements, and
# attention calls timed.  Part b, at Qwen3-14B's shape with random weights: first and later tokens
# from caches and from text, the same in torch, workers in one batch; and a training step of
# SmolLM2-135M's shape.  FOLDER (default gpu_check) gets gpu_check.json, gpu_check.txt and a log of
# each piece.  Without a GPU it ends with exit code 2, unless --miniature: tiny sizes on a CPU, to
# see whether all of it runs.
#
# Installs nothing into its Python and needs no network: what launch/pack.sh has packed is taken from
# pack/.  PSYNTH_PYTHON names the Python; if not set, it is that of .venv, else python3.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$root/launch/commands.sh"

if [[ "${1:-}" == --help || "${1:-}" == -h ]]; then
  help_of "$root/launch/gpu_check.sh"
  exit
fi

# In place of this script, so that signals reach it.
exec "$(python_here)" "$root/launch/gpu_environment.py" psynth_jax.bench.gpu_check "$@"
