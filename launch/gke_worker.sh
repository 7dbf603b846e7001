#!/usr/bin/env bash
# One pod of a training job on GKE.  launch/gke_xpk.sh has every pod run this.
#
#     launch/gke_worker.sh CONFIG [key=value ...]
#
# Training that is told to end saves, and that is no failure to it.  To Kubernetes it must not look like training that is
# done: the exit code is then 143, with which xpk starts the job again.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

export PSYNTH_EXTRA=tpu
bash "$root/launch/train.sh" "$@" &
training=$!
told=""
trap 'told=1; kill -TERM "$training"' TERM

status=0
wait "$training" || status=$?
while kill -0 "$training" 2>/dev/null; do # the signal has ended the wait, not the training
  status=0
  wait "$training" || status=$?
done
[[ -z "$told" ]] || exit 143
exit "$status"
