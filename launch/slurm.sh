#!/usr/bin/env bash
# Train on GPUs of a SLURM cluster.
#
#     launch/slurm.sh [options] CONFIG [key=value ...]
#
# Installs what is missing into this checkout, which the nodes must see, and submits a job with a process for each GPU: that
# is what JAX expects under SLURM.  The job saves and goes back into the queue when its time is over; then, and whenever a
# workdir has a checkpoint, it goes on from there.
#
# --nodes N            1 if not given
# --gpus-per-node N    8 if not given
# --name NAME          of the job, psynth if not given; its output goes to NAME-JOBID.log
# --time LIMIT         of one stay on the nodes, such as 12:00:00
# --save-before S      seconds before the limit at which training is told to save, 300 if not given
# --container IMAGE    with psynth on its PATH; run by pyxis, and nothing is installed here
# --mount FOLDER       that the container sees besides the current one, under the same path; may be repeated
# --sbatch-option X    another option of sbatch, such as --partition=gpu or --cpus-per-task=12; may be repeated
# --dry-run            print the commands and run none
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$root/launch/commands.sh"

nodes=1 gpus_per_node=8 name=psynth time="" save_before=300 container="" mounts=""
submit=(sbatch --output=%x-%j.log --open-mode=append --requeue)
while [[ "${1:-}" == -* ]]; do
  [[ "$1" != --*=* ]] || set -- "${1%%=*}" "${1#*=}" "${@:2}"
  case "$1" in
    --dry-run) dry_run=1 ;;
    --help | -h) help_of "$0" && exit ;;
    --nodes | --gpus-per-node | --name | --time | --save-before | --container)
      needs_value "$@"
      option="${1#--}"
      declare "${option//-/_}=$2"
      shift
      ;;
    --mount) needs_value "$@" && mounts+=",$2:$2" && shift ;;
    --sbatch-option) needs_value "$@" && submit+=("$2") && shift ;;
    *) fail "unknown option $1; see launch/slurm.sh --help" ;;
  esac
  shift
done
check --nodes "$nodes" '[1-9][0-9]*' 2
check --gpus-per-node "$gpus_per_node" '[1-9][0-9]*' 8
check --name "$name" '[A-Za-z0-9][-A-Za-z0-9_.]*' psynth
check --save-before "$save_before" '[1-9][0-9]*' 300
check_run launch/slurm.sh "$@"
[[ -f "$1" ]] || fail "there is no config $1"

submit+=("--job-name=$name" "--nodes=$nodes" "--ntasks-per-node=$gpus_per_node" "--gpus-per-node=$gpus_per_node"
  "--signal=B:USR1@$save_before")
if [[ -n "$time" ]]; then
  check --time "$time" '[0-9]+(-[0-9]+)?(:[0-9]+){0,2}' 12:00:00
  submit+=("--time=$time")
fi
submit+=("$root/launch/slurm_job.sh")

[[ -z "$mounts" || -n "$container" ]] || fail "--mount is for a container: name it with --container"
if [[ -n "$container" ]]; then
  check --container "$container" '[-a-zA-Z0-9._/:@#+]+' nvcr.io/my/psynth:1
  submit+=("--container-image=$container" "--container-mounts=$PWD:$PWD$mounts" "--container-workdir=$PWD")
  psynth=psynth
else
  venv="${PSYNTH_VENV:-.venv}"
  [[ "$venv" == /* ]] || venv="$root/$venv"
  psynth="$venv/bin/psynth"
  run bash "$root/launch/setup.sh" cuda
fi
run "${submit[@]}" "$psynth" train "$@"
