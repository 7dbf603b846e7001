#!/usr/bin/env bash
# Install what is missing and train on this host: its TPU, its GPUs, or its CPU.
#
#     launch/train.sh [--dry-run] CONFIG [key=value ...]
#
# A run whose workdir has a checkpoint goes on from there.  --dry-run prints the commands and runs none.
#
# PSYNTH_EXTRA   what JAX is installed for: tpu, cuda, or none; if not set, what this host has
# PSYNTH_VENV, PSYNTH_PYTHON   as launch/setup.sh has them
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$root/launch/commands.sh"

while [[ "${1:-}" == -* ]]; do
  case "$1" in
    --dry-run) dry_run=1 ;;
    --help | -h) help_of "$0" && exit ;;
    *) fail "unknown option $1; see launch/train.sh --help" ;;
  esac
  shift
done
[[ $# -ge 1 ]] || fail "CONFIG is missing; see launch/train.sh --help"
[[ -f "$1" ]] || fail "there is no config $1"

extra="${PSYNTH_EXTRA:-$(devices_here)}"
case "$extra" in
  tpu | cuda) ;;
  none) extra=demo ;;
  *) fail "PSYNTH_EXTRA cannot be '$extra': it is tpu, cuda, or none" ;;
esac

venv="${PSYNTH_VENV:-.venv}"
[[ "$venv" == /* ]] || venv="$root/$venv"
run bash "$root/launch/setup.sh" "$extra"
run exec "$venv/bin/psynth" train "$@" # in place of this script, so that signals reach it
