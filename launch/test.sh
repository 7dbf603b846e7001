#!/usr/bin/env bash
# Install what is missing and check this checkout.
#
#     launch/test.sh                       style, import directions, types, and the tests that are not marked slow
#     launch/test.sh --full                the same, with those that are marked slow, too
#     launch/test.sh --slow                only these
#     launch/test.sh --exhaustive          only the tests that neither of them runs: further cases of the same
#     launch/test.sh --extern NAME|all     the tests in tests/extern/NAME, in an environment of their own, .venv-NAME
#     launch/test.sh ARGUMENTS             pytest with these arguments
#
# Further arguments of --full, --slow, --exhaustive and --extern NAME go to pytest.  The first four
# forms use all cores, and run the tests of a file on one of them: they share what they compile, and
# keep it in .pytest_cache for the next run (--cache-clear forgets it).  "-m gemma" fetches Gemma 3
# 270M (240 MB, Gemma's terms) and tests it; no other run does.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}" HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
# Most of the time goes into compiling small programs; tests on real weights, or for TPUs, have them
# compiled as users do.
export JAX_DISABLE_MOST_OPTIMIZATIONS="${JAX_DISABLE_MOST_OPTIMIZATIONS:-1}"

# Run one tier of further packages, with the arguments that follow its name.
run_extern() {
  local name="$1" venv=".venv-$1"
  shift
  PSYNTH_VENV="$venv" bash launch/setup.sh --extern "$name"
  echo "tests/extern/$name in $venv"
  "$venv/bin/python" -m pytest "tests/extern/$name" "$@"
}

if [[ "${1:-}" == --help || "${1:-}" == -h ]]; then
  source launch/commands.sh
  help_of launch/test.sh
  exit
fi

if [[ "${1:-}" == --extern ]]; then
  names=("${2:-}")
  if [[ "${2:-}" == all ]]; then
    names=(tests/extern/*/requirements.txt)
    names=("${names[@]%/requirements.txt}")
    names=("${names[@]##*/}")
  fi
  for name in "${names[@]}"; do
    run_extern "$name" "${@:3}"
  done
  exit
fi

bash launch/setup.sh test
venv="${PSYNTH_VENV:-.venv}"
export PSYNTH_TEST_REQUIRE="torch libtpu weights" # here their tests may not be skipped

check_text() {
  "$venv/bin/python" -m ruff check .
  "$venv/bin/python" -m ruff format --check .
  "$venv/bin/lint-imports" --no-logo
  "$venv/bin/python" -m mypy
}

on_all_cores=(--numprocesses auto --dist loadfile)
case "${1:-}" in
  "")
    check_text
    set -- "${on_all_cores[@]}" -m "not slow"
    ;;
  --full)
    check_text
    set -- "${on_all_cores[@]}" -m "not exhaustive" "${@:2}"
    ;;
  --slow) set -- "${on_all_cores[@]}" -m "slow and not exhaustive" "${@:2}" ;;
  --exhaustive) set -- "${on_all_cores[@]}" -m exhaustive "${@:2}" ;;
esac
exec "$venv/bin/python" -m pytest "$@"
