#!/usr/bin/env bash
# Several processes on this machine, joined by jax.distributed as the hosts of a slice are: virtual CPU devices, gloo.
#   launch/local.sh --processes=2 --devices=4 [--logs=DIR] COMMAND ARGUMENT...
# Process 0 speaks on the terminal; each has its log DIR/process-I.log. When one ends badly the others are ended too, and
# its exit code is the result. SIGTERM and SIGINT go to all of them, which save and end with 143.
set -uo pipefail

PROCESSES=2 DEVICES=4 FOLDER=out/local GRACE=${AQAA_GRACE_SECONDS:-30}
while [[ ${1:-} == --*=* ]]; do
  case $1 in
    --processes=*) PROCESSES=${1#*=} ;;
    --devices=*) DEVICES=${1#*=} ;;
    --logs=*) FOLDER=${1#*=} ;;
    *) echo "local.sh: there is no option $1" >&2 && exit 2 ;;
  esac
  shift
done
if ! [[ $PROCESSES =~ ^[1-9][0-9]*$ && $DEVICES =~ ^[1-9][0-9]*$ ]] || (($# == 0)); then
  echo "usage: launch/local.sh --processes=N --devices=N [--logs=DIR] COMMAND ARGUMENT..." >&2
  exit 2
fi
mkdir -p "$FOLDER" || exit 2
PORT=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])') || exit 1

declare -a PIDS=()
RESULT=0 TOLD=''

# end_all SECONDS: what still runs is asked to save, and killed when it takes longer.
end_all() {
  local waited
  kill -TERM "${PIDS[@]}" 2>/dev/null
  for ((waited = 0; waited < $1 * 10; waited++)); do
    if ! kill -0 "${PIDS[@]}" 2>/dev/null; then return; fi
    sleep 0.1
  done
  kill -KILL "${PIDS[@]}" 2>/dev/null
}

trap 'TOLD=1; kill -TERM "${PIDS[@]}" 2>/dev/null' TERM INT

export JAX_PLATFORMS=cpu
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$DEVICES" # the last one counts
touch "$FOLDER/process-0.log" || exit 2 # there before tail looks for it, however late process 0 opens it
said=$(stat -c %s "$FOLDER/process-0.log") # by earlier runs
for ((i = 0; i < PROCESSES; i++)); do
  AQAA_DISTRIBUTED=$i/$PROCESSES@127.0.0.1:$PORT "$@" </dev/null >>"$FOLDER/process-$i.log" 2>&1 &
  PIDS+=($!)
done
tail -s 0.2 --pid="${PIDS[0]}" -c "+$((said + 1))" -f "$FOLDER/process-0.log" &
TERMINAL=$!

# Looked at in turn: `wait -n` says nothing of those that ended while others were being ended. A process that died takes
# the ones joined to it along within moments: of those that ended since the last look, one ended by a signal is the first.
LEFT=("${!PIDS[@]}")
while ((${#LEFT[@]})); do
  sleep 0.2
  FIRST='' CODE=0
  for i in "${LEFT[@]}"; do
    if kill -0 "${PIDS[i]}" 2>/dev/null; then continue; fi
    wait "${PIDS[i]}"
    code=$?
    unset "LEFT[i]"
    if ((code > 0 && (CODE == 0 || (code > 128 && CODE <= 128)))); then FIRST=$i CODE=$code; fi
  done
  if [[ -z $FIRST ]] || ((RESULT)); then continue; fi
  RESULT=$CODE
  others=''
  if ((${#LEFT[@]})); then others='; ending the others'; fi
  echo "local.sh: process $FIRST ended with code $CODE$others. Its log: $FOLDER/process-$FIRST.log" >&2
  # One that was told to stop saves together with the others; without one that died they can only hang.
  if ((${#LEFT[@]})); then end_all $((CODE == 143 ? GRACE : GRACE / 10)); fi
done
wait "$TERMINAL" # for the last lines
if [[ -n $TOLD ]] && ((RESULT == 0)); then RESULT=143; fi
exit "$RESULT"
