# shellcheck shell=bash
# shellcheck disable=SC2034  # OUTCOME, REASON and PROGRESS are read by supervise
# Backend local: the processes of launch/local.sh on this machine, with the same preflight, count of failures and logs.

RUN='' STOPPED='' CHILD=''

run_backend() {
  RUN=${SET[run-dir]} LOGS=${SET[run-dir]}/launch/logs
  if [[ -z ${SET[dry-run]} ]]; then
    mkdir -p "$LOGS" || die 2 "--run-dir $RUN cannot be written"
    snapshot "$RUN/launch/$(date -u +%Y%m%dT%H%M%SZ).txt"
  fi
  export AQAA_SHA=$SHA PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH} # this tree, whatever is installed
  trap 'STOPPED=1; if [[ -n $CHILD ]]; then kill -TERM "$CHILD" 2>/dev/null; fi' TERM INT
  supervise
  say "trained to the end: $RUN"
}

progress() { PROGRESS=$(find "$RUN" -mindepth 3 -maxdepth 3 -path '*/checkpoints/*' 2>/dev/null | steps_saved); }

# local_processes ARGUMENT...: `aqaa ARGUMENT...` in all processes; its exit code.
local_processes() {
  local code
  local -a command=("$HERE/local.sh" "--processes=${SET[processes]}" "--devices=${SET[devices]}" "--logs=$LOGS"
    env "${HOST_ENV[@]}" "${SET[python]}" -m aqaa_jax.cli.main "$@")
  if [[ -n ${SET[dry-run]} ]]; then
    quote "${command[@]}"
    return 0
  fi
  if [[ -n $STOPPED ]]; then exit 143; fi
  "${command[@]}" &
  CHILD=$!
  wait "$CHILD"
  while kill -0 "$CHILD" 2>/dev/null; do wait "$CHILD"; done # a signal ends one wait, not the child
  wait "$CHILD"
  code=$?
  CHILD=''
  if [[ -n $STOPPED ]]; then
    say "stopped; the same command goes on from the newest saved step"
    exit 143
  fi
  return "$code"
}

attempt() {
  local code
  OUTCOME=failed
  if [[ ${SET[preflight]} == 1 ]] &&
    ! local_processes preflight "--devices=$((${SET[processes]} * ${SET[devices]}))" "--run-dir=$RUN" --megabytes=4 ${SET[min-bandwidth]:+"--min-bandwidth=${SET[min-bandwidth]}"}; then
    REASON="preflight failed"
    return
  fi
  local_processes train "--config=${SET[config]}" "${OVERRIDES[@]}" "--run_dir=$RUN"
  code=$?
  case $code in
    0) OUTCOME='done' ;;
    2) die 2 "aqaa train refuses its arguments; see above" ;;
    143) OUTCOME=interrupted REASON="a process was told to stop" ;;
    *) REASON="training ended with code $code" ;;
  esac
}
