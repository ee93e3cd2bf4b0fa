#!/usr/bin/env bash
# Runs on every worker of a TPU VM slice, called by pod.sh: setup [BUCKET] | start PROGRAM FLAGS... | stop.
set -euo pipefail
tree=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$HOME/venv mount_point=${MOUNT_POINT:-/mnt/bucket} log=$HOME/run.log pid_file=$HOME/run.pid

attribute() {
  curl -sf -H "Metadata-Flavor: Google" "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

running() { [[ -f $pid_file ]] && kill -0 "$(<"$pid_file")" 2>/dev/null; }

mount_bucket() {
  if ! command -v gcsfuse >/dev/null; then
    local keys=/usr/share/keyrings/cloud.google.asc
    curl -sf https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$keys" >/dev/null
    echo "deb [signed-by=$keys] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
      sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    sudo apt-get -qq update
    sudo apt-get -qq install -y gcsfuse
  fi
  mountpoint -q "$mount_point" && return
  sudo mkdir -p "$mount_point"
  sudo chown "$USER" "$mount_point"
  gcsfuse --implicit-dirs "$1" "$mount_point"
}

setup() {
  python3 -m pip install --quiet --user uv
  "$HOME/.local/bin/uv" venv --quiet --allow-existing --python 3.12 "$venv"
  "$HOME/.local/bin/uv" pip install --quiet --python "$venv/bin/python" -e "${tree}[tpu]"
  if [[ -n ${1:-} ]]; then mount_bucket "$1"; fi
  echo "$(hostname) is ready"
}

# On a slice of several hosts every process is told where the first one listens, how many there are and which it is.
process_flags() {
  local endpoints host
  endpoints=$(attribute worker-network-endpoints) || return 0
  [[ $endpoints == *,* ]] || return 0
  host=${endpoints%%,*}
  IFS=, read -ra all <<<"$endpoints"
  echo "--coordinator=${host##*:}:8476 --num_processes=${#all[@]} --process_id=$(attribute agent-worker-number)"
}

start() {
  running && { echo "error: already running as process $(<"$pid_file"): stop it first" >&2; exit 2; }
  local program=$1 flags
  shift
  flags=""
  if [[ $program == train ]]; then flags=$(process_flags); fi
  cd "$tree"
  # shellcheck disable=SC2086  # the process flags are three words without spaces
  nohup setsid "$venv/bin/python" -m spatialreward_jax.launch "$program" "$@" $flags >"$log" 2>&1 </dev/null &
  echo $! >"$pid_file"
  echo "$(hostname) started process $(<"$pid_file"), log $log"
}

stop() {
  running || { echo "$(hostname) runs nothing"; return 0; }
  kill -TERM "$(<"$pid_file")"
  echo "$(hostname) asked process $(<"$pid_file") to save and stop"
}

command=${1:-}
case $command in
  setup | start | stop) "$@" ;;
  *) echo "error: unknown command '$command': setup, start or stop" >&2; exit 2 ;;
esac
