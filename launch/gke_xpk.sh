#!/usr/bin/env bash
# Train on a TPU slice of a GKE cluster that xpk has made.
#
#     launch/gke_xpk.sh --cluster CLUSTER --workload NAME --tpu-type TYPE [options] CONFIG [key=value ...]
#
# Puts a commit of this checkout into an image, and has every host of the slice run psynth train in it.  A run whose workdir
# has a checkpoint goes on from there.  CONFIG is a file of the commit, named by its path from the top of the checkout.
#
# --tpu-type TYPE             such as v5litepod-16 (or v5e-16), v5p-64, v6e-16
# --project P, --zone Z       of the cluster, if not those that gcloud is set to
# --base-docker-image IMAGE   with Python of 3.11 or newer, to which the commit is added; python:3.12 if not given
# --docker-image IMAGE        to be used as it is, instead: its working directory is a checkout, installed with setup.sh tpu
# --ref REF                   the commit, HEAD if not given
# --max-restarts N            how often the job is started again after a pre-emption or a crash, 50 if not given
# --xpk-option X              another option of xpk workload create, such as --priority=high; may be repeated
# --dry-run                   print the commands and run none
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$root/launch/commands.sh"

cluster="" workload="" tpu_type="" project="" zone="" base_docker_image="" docker_image="" ref="" max_restarts=50
create=(xpk workload create --termination-grace-period-seconds=300)
while [[ "${1:-}" == -* ]]; do
  [[ "$1" != --*=* ]] || set -- "${1%%=*}" "${1#*=}" "${@:2}"
  case "$1" in
    --dry-run) dry_run=1 ;;
    --help | -h) help_of "$0" && exit ;;
    --cluster | --workload | --tpu-type | --project | --zone | --base-docker-image | --docker-image | --ref | --max-restarts)
      needs_value "$@"
      option="${1#--}"
      declare "${option//-/_}=$2"
      shift
      ;;
    --xpk-option) needs_value "$@" && create+=("$2") && shift ;;
    *) fail "unknown option $1; see launch/gke_xpk.sh --help" ;;
  esac
  shift
done
name='[a-z]([-a-z0-9]{0,38}[a-z0-9])?' # what xpk takes
image='[a-z0-9][-a-zA-Z0-9._/:@]*'
tpu_type="$(accelerator_type "$tpu_type")"
check --cluster "$cluster" "$name" my-cluster
check --workload "$workload" "$name" my-run
check --tpu-type "$tpu_type" '[a-z0-9]+-[0-9]+(x[0-9]+)*' v5litepod-16
check --max-restarts "$max_restarts" '[0-9]+' 50
check_run launch/gke_xpk.sh "$@"

create+=("--cluster=$cluster" "--workload=$workload" "--tpu-type=$tpu_type" "--max-restarts=$max_restarts")
if [[ -n "$project" ]]; then
  check --project "$project" '[a-z][-a-z0-9.:]*[a-z0-9]' my-project
  create+=("--project=$project")
fi
if [[ -n "$zone" ]]; then
  check --zone "$zone" '[a-z]+-[a-z]+[0-9]+-[a-z]' us-west4-a
  create+=("--zone=$zone")
fi
if [[ -n "$docker_image" ]]; then
  [[ -z "$base_docker_image$ref" ]] || fail "--docker-image is used as it is: give no --base-docker-image and no --ref"
  check --docker-image "$docker_image" "$image" us-docker.pkg.dev/my-project/images/psynth:1
  create+=("--docker-image=$docker_image")
else
  base_docker_image="${base_docker_image:-python:3.12}" ref="${ref:-HEAD}"
  check --base-docker-image "$base_docker_image" "$image" python:3.12
  check_committed "$root" "$ref" "$1"
  stage="$root/.launch/$workload"
  run rm -rf "$stage"
  run mkdir -p "$stage"
  run git -C "$root" archive --format=tar.gz "--output=$stage.tar.gz" "$ref"
  run tar -xzf "$stage.tar.gz" -C "$stage"
  create+=("--base-docker-image=$base_docker_image" "--script-dir=$stage")
fi
# exec: xpk hands SIGTERM to the one process that its command starts as.
run "${create[@]}" "--command=exec bash launch/gke_worker.sh $(quoted "$@")"
