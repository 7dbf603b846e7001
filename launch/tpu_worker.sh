#!/usr/bin/env bash
# One worker of a TPU slice.  launch/tpu_vm.sh and launch/compute_engine.sh run this on all of them.
#
#     launch/tpu_worker.sh mount ADDRESS:/SHARE             at /mnt/shared, unless something is there
#     launch/tpu_worker.sh install                          what is missing
#     launch/tpu_worker.sh start CONFIG [key=value ...]     train, also when the connection has closed; see train.log
#     launch/tpu_worker.sh logs NUMBER                      follow what it prints, if it is this worker
#     launch/tpu_worker.sh stop                             tell training to save and end, and wait until it has
#
# Training holds a lock, train.lock, for as long as it lives, so nothing else has to be known about it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/commands.sh

metadata() {
  curl --fail --silent --show-error --header "Metadata-Flavor: Google" \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

add_package() {
  sudo apt-get update --quiet
  sudo apt-get install --quiet --yes "$1"
}

mount_shared() {
  ! mountpoint --quiet /mnt/shared || return 0
  [[ -e /sbin/mount.nfs ]] || add_package nfs-common
  sudo mkdir -p /mnt/shared
  sudo mount -t nfs "$1" /mnt/shared
}

# Most TPU images have Python 3.10, which is too old.
install() {
  if ! bash launch/find_python.sh 3.13 3.12 3.11 >/dev/null; then
    python3 -m pip --version >/dev/null 2>&1 || add_package python3-pip
    export PIP_BREAK_SYSTEM_PACKAGES=1 # without it, pip of Ubuntu 24.04 refuses
    python3 -m pip install --user --quiet uv
    python3 -m uv python install 3.12
    PSYNTH_PYTHON="$(python3 -m uv python find 3.12)"
    export PSYNTH_PYTHON
  fi
  bash launch/setup.sh tpu
}

# Print which worker this is.  Slices of the Cloud TPU API have an attribute for that; those of
# Compute Engine may have it in tpu-env alone, in a line TPU_WORKER_ID: '3'.
number() {
  local env
  metadata agent-worker-number 2>/dev/null && return
  env="$(metadata tpu-env)"
  [[ "$env" =~ WORKER_ID:\ *\'?([0-9]+) ]] || fail "tpu-env of $(hostname) names no WORKER_ID"
  echo "${BASH_REMATCH[1]}"
}

# Tell psynth which of how many processes it is.  Nothing in a worker's environment says so, its metadata does.
join_the_others() {
  local endpoints workers
  endpoints="$(metadata worker-network-endpoints)"
  # Names on Compute Engine, addresses on Cloud TPU; older slices have name:number:address.
  IFS=, read -r -a workers <<<"$endpoints"
  if [[ ${#workers[@]} -gt 1 ]]; then
    JAX_PROCESS_ID="$(number)"
    export JAX_PROCESS_ID JAX_NUM_PROCESSES="${#workers[@]}" JAX_COORDINATOR_ADDRESS="${workers[0]##*:}:8482"
  fi
}

start() {
  [[ $# -ge 1 ]] || fail "CONFIG is missing: launch/tpu_worker.sh start CONFIG [key=value ...]"
  join_the_others
  exec 9>>train.lock
  flock --nonblock 9 || fail "a run is active on $(hostname): stop it first"
  export PSYNTH_EXTRA=tpu
  # A session of its own, deaf to hang-ups: only SIGTERM, which also comes when the machine is shut down, ends it.
  setsid nohup bash launch/train.sh "$@" </dev/null >>train.log 2>&1 &
  echo "$!" >train.pid
}

logs() {
  [[ "$(number)" != "$1" ]] || exec tail -n 100 -F train.log
}

stop() {
  exec 9>>train.lock
  flock --nonblock 9 && return
  kill -TERM "$(cat train.pid)" || true # it may have ended just now
  flock --timeout 900 9 || fail "the run on $(hostname) did not end within 15 minutes"
}

case "${1:-} $#" in
  "mount 2") mount_shared "$2" ;;
  "install 1" | "start "* | "logs 2" | "stop 1") "$@" ;;
  *) fail "usage: launch/tpu_worker.sh mount SHARE | install | start CONFIG [key=value ...] | logs NUMBER | stop" ;;
esac
