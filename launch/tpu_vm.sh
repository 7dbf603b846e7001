#!/usr/bin/env bash
# Train on all workers of a Cloud TPU slice.
#
#     launch/tpu_vm.sh --name NAME --zone ZONE --project PROJECT [options] CONFIG [key=value ...]
#     launch/tpu_vm.sh --name NAME --zone ZONE --project PROJECT --logs | --stop-run | --delete
#
# Sends a commit of this checkout to every worker, installs it, and starts psynth train, which goes on when this script has
# ended.  A run that is active is stopped first, it saves; a run whose workdir has a checkpoint goes on from there.
# CONFIG is a file of the commit, named by its path from the top of the checkout.
#
# --create             request the slice first, as a queued resource, and wait until it is there
# --accelerator TYPE   of the slice to create, such as v5litepod-16 (or v5e-16), v5p-64, v6e-16
# --runtime VERSION    its software, if not the one that Google names for the type
# --spot               cheaper, and taken away when Google needs it
# --nfs ADDRESS:/SHARE mount this at /mnt/shared on every worker, for workdir and data
# --ref REF            the commit, HEAD if not given
# --logs               follow what worker 0 prints (--worker N: another)
# --stop-run           have training save and end, and wait until it has
# --delete             delete the slice
# --create-option X    another option of gcloud compute tpus queued-resources create; may be repeated
# --ssh-option X       another option of gcloud compute tpus tpu-vm ssh and scp, such as --internal-ip; may be repeated
# --dry-run            print the commands and run none
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$root/launch/commands.sh"

name="" zone="" project="" accelerator="" runtime="" nfs="" ref=HEAD worker=0 action=train
create="" create_slice=(gcloud compute tpus queued-resources create)
ssh=(gcloud compute tpus tpu-vm ssh) scp=(gcloud compute tpus tpu-vm scp)
while [[ "${1:-}" == -* ]]; do
  [[ "$1" != --*=* ]] || set -- "${1%%=*}" "${1#*=}" "${@:2}"
  case "$1" in
    --create) create=1 ;;
    --spot) create_slice+=(--spot) ;;
    --logs | --stop-run | --delete)
      [[ "$action" == train ]] || fail "--$action and $1 exclude each other"
      action="${1#--}"
      ;;
    --dry-run) dry_run=1 ;;
    --help | -h) help_of "$0" && exit ;;
    --name | --zone | --project | --accelerator | --runtime | --nfs | --ref | --worker)
      needs_value "$@"
      declare "${1#--}=$2"
      shift
      ;;
    --create-option) needs_value "$@" && create_slice+=("$2") && shift ;;
    --ssh-option) needs_value "$@" && ssh+=("$2") && scp+=("$2") && shift ;;
    *) fail "unknown option $1; see launch/tpu_vm.sh --help" ;;
  esac
  shift
done
check --name "$name" '[a-z]([-a-z0-9]{0,61}[a-z0-9])?' my-slice
check --zone "$zone" '[a-z]+-[a-z]+[0-9]+-[a-z]' us-west4-a
check --project "$project" '[a-z][-a-z0-9.:]*[a-z0-9]' my-project
check --worker "$worker" '[0-9]+' 0
where=("--zone=$zone" "--project=$project")

# What Google names for JAX, by the kind of TPU: cloud.google.com/tpu/docs/runtimes.
runtime_of() {
  case "$1" in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    v[234]-*) echo tpu-ubuntu2204-base ;;
    *) return 1 ;;
  esac
}

on_worker() { run "${ssh[@]}" "$name" "${where[@]}" "--worker=$1" "--command=$2"; }

wait_for_slice() {
  local state="" before=""
  local ask=(gcloud compute tpus queued-resources describe "$name" "${where[@]}" "--format=value(state.state)")
  if [[ -n "$dry_run" ]]; then
    run "${ask[@]}" # every half minute, until it says ACTIVE
    return
  fi
  while true; do
    state="$("${ask[@]}")"
    [[ "$state" == "$before" ]] || echo "$name: $state" >&2
    case "$state" in
      ACTIVE) return ;;
      FAILED | SUSPEND*) fail "$name is not to be had: delete the request with --delete" ;;
    esac
    before="$state"
    sleep 30
  done
}

stop_run='if [ -e psynth_jax/launch/tpu_worker.sh ]; then bash psynth_jax/launch/tpu_worker.sh stop; fi'
# The package anew, so that no file of another commit stays; everything else is left, runs and environment among it.
unpack='mkdir -p psynth_jax && cd psynth_jax && rm -rf psynth_jax && tar -xzf ../psynth_jax.tar.gz'

if [[ "$action" != train && ($# -gt 0 || -n "$create") ]]; then
  fail "--$action goes with no --create and no CONFIG"
fi
case "$action" in
  logs) on_worker "$worker" "tail -n 100 -F psynth_jax/train.log" ;;
  stop-run) on_worker all "$stop_run" ;;
  delete) run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force ;;
esac
[[ "$action" == train ]] || exit 0

check_run launch/tpu_vm.sh "$@"
check_committed "$root" "$ref" "$1"
install="$unpack && bash launch/tpu_worker.sh install"
if [[ -n "$nfs" ]]; then
  check --nfs "$nfs" '[A-Za-z0-9.-]+:/[-A-Za-z0-9._/]*' 10.0.0.2:/share
  install+=" && bash launch/tpu_worker.sh mount $nfs"
fi
if [[ -n "$create" ]]; then
  accelerator="$(accelerator_type "$accelerator")"
  check --accelerator "$accelerator" 'v[0-9][a-z]*-[0-9]+' v5litepod-16
  [[ -n "$runtime" ]] || runtime="$(runtime_of "$accelerator")" ||
    fail "no software is known for $accelerator: name it with --runtime"
  check --runtime "$runtime" '[a-z][-a-z0-9.]*' v2-alpha-tpuv5-lite
  run "${create_slice[@]}" "$name" "${where[@]}" "--node-id=$name" \
    "--accelerator-type=$accelerator" "--runtime-version=$runtime"
  wait_for_slice
fi
archive="$root/.launch/$name.tar.gz"
run mkdir -p "$root/.launch"
run git -C "$root" archive --format=tar.gz "--output=$archive" "$ref"
on_worker all "$stop_run"
run "${scp[@]}" "$archive" "$name:psynth_jax.tar.gz" "${where[@]}" --worker=all
on_worker all "$install"
on_worker all "cd psynth_jax && bash launch/tpu_worker.sh start $(quoted "$@")"
