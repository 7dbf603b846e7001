#!/usr/bin/env bash
# Install what is missing and check everything: style, import directions, types, tests.
#
#     launch/test.sh [arguments of pytest]
#
# With arguments it only runs pytest, with these arguments.  Without, tests run on all cores, a file on one of them: its tests
# share what they compile.  "-m gemma" fetches Gemma 3 270M (240 MB, Gemma's terms) and tests it; no other run does.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash launch/setup.sh test

venv="${PSYNTH_VENV:-.venv}"
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}" HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
export PSYNTH_TEST_REQUIRE="torch libtpu weights" # here their tests may not be skipped
# Most of the time goes into compiling small programs; tests on real weights, or for TPUs, have them compiled as users do.
export JAX_DISABLE_MOST_OPTIMIZATIONS="${JAX_DISABLE_MOST_OPTIMIZATIONS:-1}"

if [[ $# -eq 0 ]]; then
  "$venv/bin/python" -m ruff check .
  "$venv/bin/python" -m ruff format --check .
  "$venv/bin/lint-imports" --no-logo
  "$venv/bin/python" -m mypy
  set -- --numprocesses auto --dist loadfile
fi
exec "$venv/bin/python" -m pytest "$@"
