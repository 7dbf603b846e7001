#!/usr/bin/env bash
# What the scripts that start training share: they source this file.
#
# Messages go to stderr, a line each.  Wrong arguments end a script with exit code 2.  With a dry run, commands are printed
# on stdout instead, one a line, quoted so that a shell reads back the same words.
set -euo pipefail

dry_run="" # not empty: print commands, run none

fail() {
  echo "$1" >&2
  exit 2
}

# Print words as a shell has to be given them.
quoted() {
  local line
  printf -v line '%q ' "$@"
  printf '%s' "${line% }"
}

run() {
  if [[ -n "$dry_run" ]]; then
    quoted "$@"
    echo
  else
    "$@"
  fi
}

# Print the Python that runs what needs a complete environment: PSYNTH_PYTHON, that of .venv, or python3.
python_here() {
  local venv="${PSYNTH_VENV:-.venv}"
  [[ "$venv" == /* ]] || venv="$root/$venv"
  if [[ -n "${PSYNTH_PYTHON:-}" ]]; then
    echo "$PSYNTH_PYTHON"
  elif [[ -x "$venv/bin/python" ]]; then
    echo "$venv/bin/python"
  else
    echo python3
  fi
}

# Print what JAX can use on this host: tpu, cuda, or none.
devices_here() {
  if compgen -G "/dev/accel*" >/dev/null || compgen -G "/dev/vfio/[0-9]*" >/dev/null; then
    echo tpu
  elif command -v nvidia-smi >/dev/null && nvidia-smi --list-gpus >/dev/null 2>&1; then
    echo cuda
  else
    echo none
  fi
}

# Print the comment at the top of a script.
help_of() {
  local line
  while IFS= read -r line && [[ "$line" == "#"* ]]; do
    [[ "$line" == "#!"* ]] || { line="${line#\#}" && echo "${line# }"; }
  done <"$1"
}
