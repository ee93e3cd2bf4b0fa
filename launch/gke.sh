#!/usr/bin/env bash
# Runs a program on TPU slices of a GKE cluster, through XPK (pip install xpk; needs gcloud, kubectl and docker).
#
#   launch/gke.sh create --cluster=C --zone=Z --type=v6e-16 [--spot | --reservation=R | --flex] [--slices=1]   make the cluster
#   launch/gke.sh attach --cluster=C --zone=Z --bucket=B                         mount the bucket at /mnt/bucket in every workload
#   launch/gke.sh run    --cluster=C --zone=Z --type=v6e-16 --name=N -- train --config=... --workdir=/mnt/bucket/N
#   launch/gke.sh status --cluster=C --zone=Z                                    list the workloads
#   launch/gke.sh tail   --name=N                                                follow the log of the first worker
#   launch/gke.sh stop   --cluster=C --zone=Z --name=N                           end the workload
#   launch/gke.sh fetch  --bucket=B --from=PATH --to=DIR                         copy results here
#   launch/gke.sh delete --cluster=C --zone=Z                                    delete the cluster: it costs until then
#
# More flags: --project=P, --image=I (base image, default python:3.12), --restarts=50 (after preemptions and failures),
# --dry_run (print the exact commands, run nothing).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"

name="" cluster="" zone="" project="" type="" spot="" flex="" reservation="" slices=1 bucket="" from="" to=""
image=python:3.12 restarts=50

xpk_cluster() {
  need cluster zone
  run xpk "$@" "--cluster=$cluster" "--zone=$zone" ${project:+"--project=$project"}
}

create() {
  need type
  local capacity=--on-demand
  [[ -n $spot ]] && capacity=--spot
  [[ -n $flex ]] && capacity=--flex
  [[ -n $reservation ]] && capacity=--reservation=$reservation
  xpk_cluster cluster create "--tpu-type=$type" "--num-slices=$slices" "$capacity"
}

attach() {
  need bucket
  xpk_cluster storage attach "$bucket" --type=gcsfuse "--bucket=$bucket" --mount-point=/mnt/bucket --readonly=false --size=1 \
    --auto-mount=true
}

start() {
  need name type
  local line
  line=$(program_line)
  xpk_cluster workload create "--workload=$name" "--tpu-type=$type" "--num-slices=$slices" "--base-docker-image=$image" \
    "--script-dir=$(cd "$here/.." && pwd)" "--max-restarts=$restarts" \
    "--command=pip install --quiet -e '.[tpu]' && exec python -m spatialreward_jax.$line"
}

follow() {
  need name
  local first="jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0"
  run kubectl logs --follow --tail=50 --all-containers "--selector=$first"
}

fetch() {
  need bucket from to
  run gcloud storage rsync --recursive "gs://$bucket/$from" "$to" ${project:+"--project=$project"}
}

command=${1:---help}
[[ $command == --help || $command == -h ]] && { help_of "${BASH_SOURCE[0]}"; exit 0; }
shift
parse_flags "name cluster zone project type spot flex reservation slices bucket from to image restarts dry_run" "$@"
case $command in
  create | attach | fetch) "$command" ;;
  run) start ;;
  status) xpk_cluster workload list ;;
  tail) follow ;;
  stop)
    need name
    xpk_cluster workload delete "--workload=$name"
    ;;
  delete) xpk_cluster cluster delete ;;
  *) fail "unknown command '$command': see launch/gke.sh --help" ;;
esac
