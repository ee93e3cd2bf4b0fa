#!/usr/bin/env bash
# Runs a program on all workers of a Cloud TPU VM slice.
#
#   launch/pod.sh create --name=N --zone=Z --type=v6e-16 [--spot] [--queued]   ask for the slice
#   launch/pod.sh status --name=N --zone=Z [--queued]                          its state
#   launch/pod.sh wait   --name=N --zone=Z [--queued]                          until it is ready
#   launch/pod.sh setup  --name=N --zone=Z [--bucket=B]                        install the last commit, mount the bucket
#   launch/pod.sh run    --name=N --zone=Z -- train --config=... --workdir=... start on every worker, in the background
#   launch/pod.sh tail   --name=N --zone=Z [--worker=0]                        follow the log
#   launch/pod.sh stop   --name=N --zone=Z                                     ask every worker to save and stop
#   launch/pod.sh fetch  --name=N --zone=Z --from=PATH --to=DIR [--bucket=B]   copy results here
#   launch/pod.sh delete --name=N --zone=Z [--queued]                          give the slice back: it costs until then
#   launch/pod.sh resume (flags of create, setup and run)                      after a preemption: delete, create, wait, setup, run
#
# More flags: --project=P, --runtime=V (default by type), --dry_run (print the exact commands, run nothing).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"

name="" zone="" project="" type="" runtime="" spot="" queued="" bucket="" from="" to="" worker=0
tree=spatialreward_jax # folder of the working tree on the workers, in the home directory

gcloud_tpu() { run gcloud compute tpus "$@" "--zone=$zone" ${project:+"--project=$project"}; }
ssh_all() { gcloud_tpu tpu-vm ssh "$name" --worker=all "--command=$1"; }

runtime_of() {
  case $1 in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v4-*) echo tpu-ubuntu2204-base ;;
    *) fail "no runtime known for --type=$1: use v6e-N, v5p-N, v5litepod-N or v4-N, or give --runtime" ;;
  esac
}

create() {
  need type
  local version=${runtime:-}
  [[ -n $version ]] || version=$(runtime_of "$type")
  if [[ -n $queued ]]; then
    gcloud_tpu queued-resources create "$name" "--node-id=$name" "--accelerator-type=$type" "--runtime-version=$version" \
      ${spot:+--spot}
  else
    gcloud_tpu tpu-vm create "$name" "--accelerator-type=$type" "--version=$version" ${spot:+--spot}
  fi
}

status() {
  if [[ -n $queued ]]; then
    gcloud_tpu queued-resources describe "$name" '--format=value(state.state)'
  else
    gcloud_tpu tpu-vm describe "$name" '--format=value(state)'
  fi
}

wait_ready() {
  local state
  while true; do
    state=$(status)
    if [[ -n $dry_run ]]; then
      echo "$state"
      return
    fi
    case $state in
      READY | ACTIVE) return ;;
      FAILED | SUSPENDED | SUSPENDING | PREEMPTED | TERMINATED) fail "$name is $state: delete it and create it again" ;;
    esac
    echo "$name is ${state:-unknown}, waiting"
    sleep "${POLL_SECONDS:-30}"
  done
}

setup() {
  local archive="${TMPDIR:-/tmp}/$name.tgz"
  run git -C "$here/.." archive --format=tar.gz "--output=$archive" HEAD
  gcloud_tpu tpu-vm scp "$archive" "$name:$tree.tgz" --worker=all
  ssh_all "mkdir -p $tree && tar xzf $tree.tgz -C $tree && bash $tree/launch/worker.sh setup $(quoted "$bucket")"
}

start() {
  local line
  line=$(program_line)
  ssh_all "bash $tree/launch/worker.sh start $line"
}

fetch() {
  need from to
  if [[ -n $bucket ]]; then
    run gcloud storage rsync --recursive "gs://$bucket/$from" "$to" ${project:+"--project=$project"}
  else
    gcloud_tpu tpu-vm scp --recurse "$name:$from" "$to" --worker=0
  fi
}

delete() {
  if [[ -n $queued ]]; then
    gcloud_tpu queued-resources delete "$name" --force --quiet
  else
    gcloud_tpu tpu-vm delete "$name" --quiet
  fi
}

resume() {
  need type
  program_line >/dev/null
  delete || echo "nothing to delete, going on"
  create
  wait_ready
  setup
  start
}

command=${1:---help}
[[ $command == --help || $command == -h ]] && { help_of "${BASH_SOURCE[0]}"; exit 0; }
shift
parse_flags "name zone project type runtime spot queued bucket from to worker dry_run" "$@"
need name zone
[[ $name =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] || fail "--name=$name: use lower-case letters, digits and dashes"
case $command in
  create | status | setup | fetch | delete | resume) "$command" ;;
  wait) wait_ready ;;
  run) start ;;
  tail) gcloud_tpu tpu-vm ssh "$name" "--worker=$worker" "--command=tail -n 50 -F run.log" ;;
  stop) ssh_all "bash $tree/launch/worker.sh stop" ;;
  *) fail "unknown command '$command': see launch/pod.sh --help" ;;
esac
