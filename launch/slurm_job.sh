#!/usr/bin/env bash
# The script of a SLURM job.  launch/slurm.sh submits it.
#
#     launch/slurm_job.sh [options of srun] COMMAND...
#
# Runs a command in every task.  All tasks of a node see all of its GPUs: JAX has each take the one of its SLURM_LOCALID.
# SIGUSR1, which SLURM sends to this script alone some time before the limit, has the tasks save and end, and puts the job
# back into the queue.  srun itself is not signalled: it would end its tasks at once.
set -euo pipefail

told=""
trap 'told=1; scancel --signal=TERM "$SLURM_JOB_ID" || echo "the tasks could not be signalled" >&2' USR1

srun --kill-on-bad-exit=1 ${SLURM_CPUS_PER_TASK:+"--cpus-per-task=$SLURM_CPUS_PER_TASK"} "$@" &
tasks=$!
status=0
wait "$tasks" || status=$?
while kill -0 "$tasks" 2>/dev/null; do # the signal has ended the wait, not the tasks
  status=0
  wait "$tasks" || status=$?
done
[[ -z "$told" ]] || exec scontrol requeue "$SLURM_JOB_ID"
exit "$status"
