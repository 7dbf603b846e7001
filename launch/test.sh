#!/usr/bin/env bash
# Install what is missing and check everything: style, import directions, types, tests.
#
#     launch/test.sh [arguments of pytest]
#
# With arguments it only runs pytest, with these arguments.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash launch/setup.sh test

venv="${PSYNTH_VENV:-.venv}"
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}" HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
export PSYNTH_TEST_REQUIRE="torch weights" # here their tests may not be skipped

if [[ $# -eq 0 ]]; then
  "$venv/bin/python" -m ruff check .
  "$venv/bin/python" -m ruff format --check .
  "$venv/bin/lint-imports" --config pyproject.toml --no-logo
  "$venv/bin/python" -m mypy
fi
exec "$venv/bin/python" -m pytest "$@"
