#!/usr/bin/env bash
# One host of a run: what the launcher asks of it. Every phase but pod ends in a line ":aqaa: PHASE WORKER RESULT".
#   setup            bucket, environment
#   preflight ARGS   checks that need all hosts at once
#   start ARGS       training, in the background
#   status ARGS      running SECONDS_SINCE_THE_LAST_LOG_LINE, exit CODE @TIME: LAST_LINE, dead, other (arguments) or none
#   stop             end it
#   pod CHECKS -- ARGS   all of it in the foreground, for a container
set -uo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CODE=$(dirname "$HERE")
HOME_DIR=${AQAA_HOME:-$HOME/aqaa}
VENV=$HOME_DIR/venv/$AQAA_SHA
MOUNT=${AQAA_MOUNT:-$HOME_DIR/bucket}
BUCKET=${AQAA_RUN_DIR#gs://} BUCKET=${BUCKET%%/*}
RUN=$MOUNT/${AQAA_RUN_DIR#gs://*/}
STATE=$HOME_DIR/runs/$AQAA_NAME # what is known of the training here: log, pid, rc, arguments
export AQAA_DISTRIBUTED=${AQAA_DISTRIBUTED:-auto} AQAA_SHA
# A restart after a preemption compiles nothing anew.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$RUN/launch/compiled}

worker() { # its number within the slice
  if [[ -n ${TPU_WORKER_ID:-} ]]; then echo "$TPU_WORKER_ID"; else metadata agent-worker-number || uname -n; fi
}

metadata() {
  curl -sf -m 10 -H 'Metadata-Flavor: Google' "http://${GCE_METADATA_IP:-metadata.google.internal}/computeMetadata/v1/instance/attributes/$1"
}

host() { echo "$(uname -n)-$(worker)"; }

report() { printf ':aqaa: %s %s %s\n' "$PHASE" "$(worker)" "$*"; }

# report_of COMMAND...: runs it; the line says how it went and, if badly, its last words.
report_of() {
  local rc=0
  "$@" >"$STATE/$PHASE.out" 2>&1 || rc=$?
  cat "$STATE/$PHASE.out"
  if ((rc == 0)); then report ok; else report "failed $rc: $(last_words "$STATE/$PHASE.out")"; fi
  return "$rc"
}

last_words() { grep -v '^$' "$1" 2>/dev/null | tail -n 1 | cut -c1-300; }

setup() { mount_bucket && mkdir -p "$RUN/launch/logs" && environment && remember; }

mount_bucket() {
  if [[ -n ${AQAA_MOUNT:-} ]] || mountpoint -q "$MOUNT"; then return 0; fi
  mkdir -p "$MOUNT"
  command -v gcsfuse >/dev/null || install_gcsfuse || return 1
  gcsfuse --implicit-dirs "$BUCKET" "$MOUNT"
}

install_gcsfuse() {
  local key=/usr/share/keyrings/cloud.google.asc from=https://packages.cloud.google.com/apt
  curl -sSf "$from/doc/apt-key.gpg" | sudo tee "$key" >/dev/null &&
    echo "deb [signed-by=$key] $from gcsfuse-$(lsb_release -cs) main" | sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null &&
    sudo apt-get -qq update && sudo apt-get -qq install -y gcsfuse
}

environment() { # one for each commit, made once
  local python found=''
  if [[ -f $VENV/ready ]]; then return 0; fi
  rm -rf "$VENV"
  for python in python3.13 python3.12 python3.11 python3; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      found=$python
      break
    fi
  done
  if [[ -n $found ]]; then
    "$found" -m venv "$VENV" && "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "${CODE}[tpu]" || return 1
  else # older images of TPU VMs have Python 3.10
    python3 -m pip install --quiet --user uv && python3 -m uv venv --quiet --seed --python 3.12 "$VENV" &&
      python3 -m uv pip install --quiet --python "$VENV/bin/python" "${CODE}[tpu]" || return 1
  fi
  touch "$VENV/ready"
}

remember() { # what this host is, in the run directory
  {
    printf 'sha: %s\nhost: %s\nsystem: %s\n' "$AQAA_SHA" "$(host)" "$(uname -sr)"
    env | grep -E '^(AQAA_|JAX_|XLA_|LIBTPU_|TPU_|MEGASCALE_|TENSORSTORE_)' | sort
    "$VENV/bin/python" -m pip freeze
  } >"$RUN/launch/host-$(host).txt" 2>&1
}

# runtime_flags: what several slices need and the compiler is not told (its own flags are given with each program).
runtime_flags() {
  if ((${AQAA_SLICES:-1} > 1)); then
    LIBTPU_INIT_ARGS="${LIBTPU_INIT_ARGS:-} $("$VENV/bin/python" -c \
      'from aqaa_jax.sharding.xla_flags import RUNTIME; print(*(f"--{flag.name}={flag.value}" for flag in RUNTIME))')"
    export LIBTPU_INIT_ARGS
  fi
}

preflight() { "$VENV/bin/aqaa" preflight "--run-dir=$RUN" "$@"; }

start() {
  rm -f "$STATE/rc"
  printf '%q ' "$@" >"$STATE/arguments"
  touch "$STATE/log"
  setsid bash "$HERE/host.sh" train "$@" </dev/null >/dev/null 2>&1 &
  echo "$! $(boot)" >"$STATE/pid"
}

boot() { cat /proc/sys/kernel/random/boot_id; }

# train: with its log here and in the run directory, and its exit code where `status` finds it.
train() {
  local rc child uploads
  cd "$CODE" || return 1
  "$VENV/bin/aqaa" train "$@" "--run_dir=$RUN" >>"$STATE/log" 2>&1 &
  child=$!
  trap 'kill -TERM "$child" 2>/dev/null' TERM INT
  while sleep 60; do upload_log; done </dev/null >/dev/null 2>&1 &
  uploads=$!
  wait "$child"
  while kill -0 "$child" 2>/dev/null; do wait "$child"; done # a signal ends one wait, not the child
  wait "$child"
  rc=$?
  kill "$uploads" 2>/dev/null
  upload_log
  echo "$rc @$(date +%s)" >"$STATE/rc"
  return "$rc"
}

upload_log() {
  local to
  to=$RUN/launch/logs/$(host).log
  cp "$STATE/log" "$to.part" 2>/dev/null && mv "$to.part" "$to"
}

status() {
  local pid where rc
  if [[ -f $STATE/rc ]]; then
    rc=$(<"$STATE/rc")
    report "exit $rc: $(last_words "$STATE/log")"
  elif [[ ! -f $STATE/pid ]]; then
    report none
  else
    read -r pid where <"$STATE/pid"
    if [[ $where != "$(boot)" ]] || ! kill -0 "$pid" 2>/dev/null; then
      report dead
    elif [[ $(printf '%q ' "$@") != "$(<"$STATE/arguments")" ]]; then
      report other
    else
      report "running $(($(date +%s) - $(stat -c %Y "$STATE/log")))"
    fi
  fi
}

stop() {
  local pid where waited
  if [[ -f $STATE/pid ]]; then
    read -r pid where <"$STATE/pid"
    if [[ $where == "$(boot)" ]]; then
      kill -TERM -- "-$pid" 2>/dev/null
      for ((waited = 0; waited < ${AQAA_GRACE_SECONDS:-30} * 10; waited++)); do
        kill -0 -- "-$pid" 2>/dev/null || break
        sleep 0.1
      done
      kill -KILL -- "-$pid" 2>/dev/null
    fi
  fi
  rm -f "$STATE/pid" "$STATE/rc"
}

# pod CHECKS -- ARGS: Kubernetes starts it anew after code 42 or a signal's; code 3 is final.
pod() {
  local rc=0 tail marker said
  local -a checks=()
  while [[ $1 != -- ]]; do
    checks+=("$1")
    shift
  done
  shift
  setup || return 42
  guard || return 3
  runtime_flags
  if ((${#checks[@]})); then preflight "${checks[@]}" || return 42; fi
  touch "$STATE/log"
  said=$(stat -c %s "$STATE/log")
  sleep infinity & # as long as it is there, tail goes on; it begins where the log ended before, however late it starts
  marker=$!
  tail -s 0.2 --pid="$marker" -c "+$((said + 1))" -F "$STATE/log" 2>/dev/null &
  tail=$!
  train "$@" || rc=$?
  kill "$marker"
  wait "$marker" 2>/dev/null
  wait "$tail" # for the last lines
  if first && ((rc == 0 || rc == 143)); then echo "ended $(saved)" >>"$RUN/launch/attempts"; fi
  if ((rc > 0 && rc < 127)); then rc=42; fi
  return "$rc"
}

first() { [[ ${TPU_WORKER_ID:-0}.${MEGASCALE_SLICE_ID:-0} == 0.0 ]]; }

saved() { # which steps are saved, in a word
  find "$RUN" -mindepth 3 -maxdepth 3 -regex '.*/checkpoints/[0-9]+' | sort | sha256sum | cut -c1-12
}

# guard: refuses to go on when the last attempts all began at the same saved steps and none was told to end.
guard() {
  local now limit=${AQAA_MAX_FAILURES:-3}
  first || return 0
  now="began $(saved)"
  if (($(tail -n "$limit" "$RUN/launch/attempts" 2>/dev/null | grep -cxF "$now") >= limit)); then
    echo "the last $limit attempts failed without a new saved step: stopping (delete $RUN/launch/attempts to try again)"
    return 1
  fi
  echo "$now" >>"$RUN/launch/attempts"
}

PHASE=$1
shift
mkdir -p "$STATE"
case $PHASE in preflight | train) runtime_flags ;; esac
case $PHASE in
  setup | preflight) report_of "$PHASE" "$@" ;;
  start | stop)
    "$PHASE" "$@"
    report ok
    ;;
  status | train | pod) "$PHASE" "$@" ;;
  *)
    echo "host.sh: there is no phase $PHASE" >&2
    exit 2
    ;;
esac
