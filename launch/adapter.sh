#!/usr/bin/env bash
# Make the adapter that comes along for SmolLM2-135M: prepare its data, train both halves, export.
#
#     launch/adapter.sh [--dry-run] FOLDER [key=value ...]
#
# FOLDER has the files of docs/adapter.md: hotpotqa_train.json, hotpotqa_supported.json, 2wiki_train.json,
# musique_train.json, squad_train.json, flan_cot.jsonl, sharegpt.jsonl.  Overrides, such as dtype=float32, go to both halves.
# Prepared data, runs and the adapter come into data/, runs/ and adapter/ of the folder that you are in.  Stopped, it goes on
# where it stands when it is started again.  --dry-run prints the commands and runs none.
#
# PSYNTH_EXTRA, PSYNTH_VENV, PSYNTH_PYTHON   as launch/train.sh has them
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$root/launch/commands.sh"

while [[ "${1:-}" == -* ]]; do
  case "$1" in
    --dry-run) dry_run=1 ;;
    --help | -h) help_of "$0" && exit ;;
    *) fail "unknown option $1; see launch/adapter.sh --help" ;;
  esac
  shift
done
[[ $# -ge 1 ]] || fail "FOLDER is missing; see launch/adapter.sh --help"
files="$1"
shift
for name in hotpotqa_train hotpotqa_supported 2wiki_train musique_train squad_train; do
  [[ -f "$files/$name.json" ]] || fail "there is no $files/$name.json"
done
for name in flan_cot sharegpt; do
  [[ -f "$files/$name.jsonl" ]] || fail "there is no $files/$name.jsonl"
done

venv="${PSYNTH_VENV:-.venv}"
[[ "$venv" == /* ]] || venv="$root/$venv"

# prepare DIRECTORY SOURCE FILE [options]: unless that has been done.
prepare() {
  [[ -d "data/$1" ]] || run "$venv/bin/psynth" data prepare "$2" "$files/$3" --into "data/$1" --model smollm2-135m "${@:4}"
}

# half NAME [key=value ...]
half() { run bash "$root/launch/train.sh" "$root/configs/smollm2-135m-$1.yaml" "${@:2}"; }

run bash "$root/launch/setup.sh" demo # psynth, to prepare data; train.sh installs what this host's devices need
prepare hotpotqa hotpotqa hotpotqa_train.json
prepare few hotpotqa hotpotqa_supported.json --option max_contexts=4
prepare 2wikimultihopqa 2wikimultihopqa 2wiki_train.json
prepare musique hotpotqa musique_train.json
prepare squad squad squad_train.json --option contexts=3
prepare flan_cot flan_cot flan_cot.jsonl
prepare sharegpt sharegpt sharegpt.jsonl
half text "$@"
half branches "$@"
run "$venv/bin/psynth" export runs/smollm2-135m-branches --into adapter --dtype bfloat16
