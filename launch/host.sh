#!/usr/bin/env bash
# One host of a run: what the launcher asks of it. Every phase ends in a line ":aqaa: PHASE WORKER RESULT".
#   setup   bucket, environment           preflight   checks that need all hosts at once
#   start   training, in the background   status      running SECONDS_SINCE_LAST_LOG, exit CODE, dead or none
#   stop    end it                        pod         all of it in the foreground, for a container
set -uo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CODE=$(dirname "$HERE")
HOME_DIR=${AQAA_HOME:-$HOME/aqaa}
VENV=$HOME_DIR/venv/$AQAA_SHA
MOUNT=${AQAA_MOUNT:-$HOME_DIR/bucket}
BUCKET=${AQAA_RUN_DIR#gs://} BUCKET=${BUCKET%%/*}
RUN=$MOUNT/${AQAA_RUN_DIR#gs://*/}
STATE=$HOME_DIR/runs/$AQAA_NAME # log, pid, rc: what is known of the training here
export AQAA_DISTRIBUTED=${AQAA_DISTRIBUTED:-auto} AQAA_SHA
# A restart after a preemption compiles nothing anew.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$RUN/launch/compiled}

worker() { # its number within the slice
  if [[ -n ${TPU_WORKER_ID:-} ]]; then echo "$TPU_WORKER_ID"; else metadata agent-worker-number || uname -n; fi
}

metadata() {
  curl -sf -m 10 -H 'Metadata-Flavor: Google' "http://${GCE_METADATA_IP:-metadata.google.internal}/computeMetadata/v1/instance/attributes/$1"
}

report() { printf ':aqaa: %s %s %s\n' "$PHASE" "$(worker)" "$*"; }

# report_of COMMAND...: runs it; the line says how it went and, if badly, its last words.
report_of() {
  local rc=0
  "$@" >"$STATE/$PHASE.out" 2>&1 || rc=$?
  cat "$STATE/$PHASE.out"
  if ((rc == 0)); then report ok; else report "failed $rc: $(grep -v '^$' "$STATE/$PHASE.out" | tail -n 1 | cut -c1-200)"; fi
  return "$rc"
}

setup() {
  mount_bucket && mkdir -p "$RUN/launch/logs" && environment && remember
}

mount_bucket() {
  if [[ -n ${AQAA_MOUNT:-} ]] || mountpoint -q "$MOUNT"; then return 0; fi
  mkdir -p "$MOUNT"
  command -v gcsfuse >/dev/null || install_gcsfuse
  gcsfuse --implicit-dirs "$BUCKET" "$MOUNT"
}

install_gcsfuse() {
  local key=/usr/share/keyrings/cloud.google.asc from=https://packages.cloud.google.com/apt
  curl -sSf "$from/doc/apt-key.gpg" | sudo tee "$key" >/dev/null &&
    echo "deb [signed-by=$key] $from gcsfuse-$(lsb_release -cs) main" | sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null &&
    sudo apt-get -qq update && sudo apt-get -qq install -y gcsfuse
}

environment() { # one for each commit, made once
  [[ -f $VENV/ready ]] && return 0
  local python
  for python in python3.13 python3.12 python3.11 python3; do
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
    python=''
  done
  rm -rf "$VENV"
  if [[ -n $python ]] && "$python" -m venv "$VENV"; then
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "${CODE}[tpu]" || return 1
  else # the images of older TPU VMs have Python 3.10
    python3 -m pip install --quiet --user uv && python3 -m uv venv --quiet --python 3.12 "$VENV" &&
      python3 -m uv pip install --quiet --python "$VENV/bin/python" "${CODE}[tpu]" || return 1
  fi
  touch "$VENV/ready"
}

remember() { # what this host is, in the run directory
  {
    printf 'sha: %s\nhost: %s\nsystem: %s\n' "$AQAA_SHA" "$(uname -n)" "$(uname -sr)"
    env | grep -E '^(AQAA_|JAX_|XLA_|LIBTPU_|TPU_|MEGASCALE_|TENSORSTORE_)' | sort
    if [[ $(worker) == 0 ]]; then "$VENV/bin/python" -m pip freeze 2>/dev/null; fi
  } >"$RUN/launch/host-$(uname -n).txt"
}

preflight() { "$VENV/bin/aqaa" preflight "--run-dir=$RUN" "$@"; }

start() {
  rm -f "$STATE/rc"
  setsid bash "$HERE/host.sh" train "$@" </dev/null >/dev/null 2>&1 &
  echo "$! $(boot)" >"$STATE/pid"
}

boot() { cat /proc/sys/kernel/random/boot_id; }

# train: the training with its log, here and in the run directory, and its exit code where `status` finds it.
train() {
  local rc=0 child uploads
  cd "$CODE" || return 1
  "$VENV/bin/aqaa" train "$@" "--run_dir=$RUN" >>"$STATE/log" 2>&1 &
  child=$!
  trap 'kill -TERM "$child" 2>/dev/null' TERM INT
  while sleep 60; do upload_log; done &
  uploads=$!
  until wait "$child" && rc=0 || rc=$?; ! kill -0 "$child" 2>/dev/null; do :; done # a signal ends one wait, not the child
  kill "$uploads" 2>/dev/null
  upload_log
  echo "$rc" >"$STATE/rc"
  return "$rc"
}

upload_log() { cp "$STATE/log" "$RUN/launch/logs/$(uname -n).log.part" 2>/dev/null && mv "$RUN/launch/logs/$(uname -n).log.part" "$RUN/launch/logs/$(uname -n).log"; }

status() {
  local pid where
  if [[ -f $STATE/rc ]]; then
    local rc
    rc=$(<"$STATE/rc")
    if ((rc == 0)); then report "exit 0"; else report "exit $rc: $(grep -v '^$' "$STATE/log" | tail -n 1 | cut -c1-200)"; fi
  elif [[ ! -f $STATE/pid ]]; then
    report none
  else
    read -r pid where <"$STATE/pid"
    if [[ $where == "$(boot)" ]] && kill -0 "$pid" 2>/dev/null; then
      report "running $(($(date +%s) - $(stat -c %Y "$STATE/log" 2>/dev/null || date +%s)))"
    else
      report dead
    fi
  fi
}

stop() {
  local pid where waited
  if [[ -f $STATE/pid ]] && read -r pid where <"$STATE/pid" && [[ $where == "$(boot)" ]]; then
    kill -TERM -- "-$pid" 2>/dev/null
    for ((waited = 0; waited < ${AQAA_GRACE_SECONDS:-30}; waited++)); do
      kill -0 -- "-$pid" 2>/dev/null || break
      sleep 1
    done
    kill -KILL -- "-$pid" 2>/dev/null
  fi
  rm -f "$STATE/pid" "$STATE/rc"
}

# pod: everything, in the foreground. Kubernetes restarts what exits with 42 or a signal's code; code 3 is final.
pod() {
  setup || return 42
  guard || return 3
  preflight "${PREFLIGHT[@]}" || return 42
  local rc=0
  tail -n 0 -F "$STATE/log" 2>/dev/null &
  train "$@" || rc=$?
  kill %tail 2>/dev/null
  if [[ $(first) == 1 ]] && ((rc == 0 || rc == 143)); then echo "ended $(saved)" >>"$RUN/launch/attempts"; fi
  if ((rc != 0 && rc < 127)); then return 42; fi
  return "$rc"
}

first() { if [[ ${TPU_WORKER_ID:-0}.${MEGASCALE_SLICE_ID:-0} == 0.0 ]]; then echo 1; else echo 0; fi; }

saved() { find "$RUN" -mindepth 3 -maxdepth 3 -path '*/checkpoints/*' | sort | sha256sum | cut -c1-12; }

# guard: refuse to go on when the last attempts all began at the same saved steps and none was stopped from outside.
guard() {
  [[ $(first) == 1 ]] || return 0
  local now same
  now=$(saved)
  same=$(tail -n "${AQAA_MAX_FAILURES:-3}" "$RUN/launch/attempts" 2>/dev/null | grep -cx "began $now")
  if ((same >= ${AQAA_MAX_FAILURES:-3})); then
    echo "the last $same attempts began at the same saved step and failed: stopping (remove $RUN/launch/attempts to try again)"
    return 1
  fi
  echo "began $now" >>"$RUN/launch/attempts"
}

PHASE=$1
shift
mkdir -p "$STATE"
case $PHASE in
  setup | preflight) report_of "$PHASE" "$@" ;;
  start | stop) "$PHASE" "$@"; report ok ;;
  status) status ;;
  train) train "$@" ;;
  pod)
    PREFLIGHT=()
    while [[ ${1:-} != -- ]]; do PREFLIGHT+=("$1") && shift; done
    shift
    pod "$@"
    ;;
  *) echo "host.sh: no phase $PHASE" >&2; exit 2 ;;
esac
