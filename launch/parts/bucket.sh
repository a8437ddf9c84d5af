# shellcheck shell=bash
# shellcheck disable=SC2034  # PROGRESS is read by supervise
# The run directory in a bucket: code and settings go in, saved steps and logs are seen there.

RUN='' FOLLOW='' TERMINAL=''

# must COMMAND...: `cloud`, and the end of the launcher if what it asks for is not there.
must() { cloud "$@" || die 3 "not there: $(quote "$@"): $(head -c 600 "$WORK/said")"; }

# open_run_dir: RUN, with the code and the settings of this launch in it.
open_run_dir() {
  [[ ${SET[run-dir]} =~ ^gs://[^/]+/.+ ]] || die 2 "--run-dir is ${SET[run-dir]}; expected gs://BUCKET/PATH, which every host can reach"
  RUN=${SET[run-dir]%/}
  LOGS=${SET[logs]:-$ROOT/out/launch}/${SET[name]}
  once mkdir -p "$LOGS"
  pack_code "$WORK/$SHA.tar"
  snapshot "$WORK/launch.txt"
  must gcloud storage cp "$WORK/$SHA.tar" "$RUN/launch/$SHA.tar" "--project=${SET[project]}"
  must gcloud storage cp "$WORK/launch.txt" "$RUN/launch/$(date -u +%Y%m%dT%H%M%SZ).txt" "--project=${SET[project]}"
}

progress() {
  PROGRESS=0
  if cloud gcloud storage ls "$RUN/*/checkpoints/" "--project=${SET[project]}"; then PROGRESS=$(steps_saved <<<"$ANSWER"); fi
}

collect_logs() { # every host leaves its log in the run directory
  once mkdir -p "$LOGS/workers"
  cloud gcloud storage cp --recursive "$RUN/launch/logs/*" "$LOGS/workers/" "--project=${SET[project]}" ||
    say "no logs of workers in $RUN/launch/logs"
}

# host_environment: what host.sh must know, as words for `env`.
host_environment() {
  quote "AQAA_NAME=${SET[name]}" "AQAA_SHA=$SHA" "AQAA_RUN_DIR=$RUN" "AQAA_MAX_FAILURES=${SET[max-failures]}" "AQAA_SLICES=${SET[slices]}" "${HOST_ENV[@]}"
}

# preflight_arguments: what `aqaa preflight` must find.
preflight_arguments() {
  quote "--devices=$DEVICES" ${SET[min-bandwidth]:+"--min-bandwidth=${SET[min-bandwidth]}"}
}

# follow_with COMMAND...: a log of worker 0 that goes on; to a file, and from there to the terminal.
follow_with() {
  local log=$LOGS/worker-0.log
  if [[ -n ${SET[dry-run]} ]]; then
    quote "$@"
    return
  fi
  touch "$log"
  if [[ -z $TERMINAL ]]; then
    tail -n 0 --pid=$$ -f "$log" >&2 &
    TERMINAL=$!
  fi
  setsid "$@" </dev/null >>"$log" 2>/dev/null & # a group of its own, so that what it started ends with it
  FOLLOW=$!
}

following() { [[ -n $FOLLOW ]] && kill -0 "$FOLLOW" 2>/dev/null; }

stop_following() {
  if [[ -n $FOLLOW ]]; then kill -- "-$FOLLOW" 2>/dev/null; fi
  if [[ -n $TERMINAL ]]; then
    sleep 0.2 # for the last lines
    kill "$TERMINAL" 2>/dev/null
  fi
  FOLLOW='' TERMINAL=''
}
