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
# Nothing is installed or downloaded.  PSYNTH_PYTHON names the Python; else it is .venv/bin/python,
# or python3.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

if [[ "${1:-}" == --help || "${1:-}" == -h ]]; then
  cd "$root"
  source launch/commands.sh
  help_of launch/gpu_check.sh
  exit
fi

python="${PSYNTH_PYTHON:-}"
if [[ -z "$python" ]]; then
  python="$root/.venv/bin/python"
  [[ -x "$python" ]] || python=python3
fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m psynth_jax.bench.gpu_check "$@"
