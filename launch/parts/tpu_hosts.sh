# shellcheck shell=bash
# shellcheck disable=SC2034  # OUTCOME and REASON are read by supervise
# Backend tpu-vm, the hosts: one attempt to train on an active slice.

HOSTS=0
declare -A STATUS=()

attempt() {
  OUTCOME=failed
  active_slice || return 0
  count_hosts
  on_hosts status "--config=${SET[config]}" "${OVERRIDES[@]}"
  if still_training; then
    say "already training there; attaching"
  elif ! start_training; then
    slice_state
    if [[ $STATE != ACTIVE ]]; then OUTCOME=interrupted REASON="the slice was taken away ($STATE); before, $REASON"; fi
    return 0
  fi
  follow +1
  watch
  stop_following
  if [[ $OUTCOME != 'done' ]]; then on_hosts stop; fi
  collect_logs
}

count_hosts() { # workers of all slices
  local node
  HOSTS=0
  for node in "${NODES[@]}"; do
    must gcloud compute tpus tpu-vm describe "$node" "${WHERE[@]}" '--format=value(networkEndpoints.len())'
    if [[ -n ${SET[dry-run]} ]]; then ANSWER=1; fi
    [[ $ANSWER =~ ^[0-9]+$ ]] || die 1 "node $node tells of '$ANSWER' workers; expected a number"
    HOSTS=$((HOSTS + ANSWER))
  done
}

start_training() {
  local -a checks
  mapfile -t checks < <(preflight_arguments | xargs -n 1)
  # Stopped is what an older commit or other arguments left running here.
  all_hosts setup && all_hosts stop || return 1
  if [[ ${SET[preflight]} == 1 ]]; then
    all_hosts preflight "${checks[@]}" || return 1
    if [[ -z ${SET[dry-run]} ]]; then grep -h '^preflight' "$WORK"/*.out >&2; fi
  fi
  all_hosts start "--config=${SET[config]}" "${OVERRIDES[@]}"
}

still_training() {
  local host
  ((${#STATUS[@]} == HOSTS)) || return 1
  for host in "${!STATUS[@]}"; do [[ ${STATUS[$host]} == running* ]] || return 1; done
}

# on_hosts PHASE ARGUMENT...: `launch/host.sh PHASE` on every worker of every slice at once. STATUS[node/worker] is then
# what the host's own line says (ok, failed 1: ..., running 12); a worker that sent none is not in it.
on_hosts() {
  local node line phase=$1
  local -a ssh jobs=()
  STATUS=()
  for node in "${NODES[@]}"; do
    ssh=(gcloud compute tpus tpu-vm ssh "$node" "${WHERE[@]}" --worker=all "--command=$(host_command "$@")")
    if [[ -n ${SET[internal-ips]} ]]; then ssh+=(--internal-ip); fi
    if [[ -n ${SET[dry-run]} ]]; then
      quote "${ssh[@]}"
      STATUS[$node/0]=$([[ $phase == status ]] && echo "exit 0" || echo ok)
      continue
    fi
    "${ssh[@]}" </dev/null >"$WORK/$node.out" 2>"$WORK/$node.err" &
    jobs+=($!)
  done
  if [[ -n ${SET[dry-run]} ]]; then return; fi
  wait "${jobs[@]}"
  for node in "${NODES[@]}"; do
    { printf -- '--- %s %s\n' "$phase" "$(date -u +%T)" && cat "$WORK/$node.out" "$WORK/$node.err"; } >>"$LOGS/$node.log"
    while IFS= read -r line; do
      if [[ $line =~ ^:aqaa:\ $phase\ ([^ ]+)\ (.*)$ ]]; then STATUS[$node/${BASH_REMATCH[1]}]=${BASH_REMATCH[2]}; fi
    done <"$WORK/$node.out"
  done
}

# host_command PHASE ARGUMENT...: what ssh runs there. `setup` brings the code; all else finds it.
host_command() {
  local line='' code="\$HOME/aqaa/code/$SHA"
  if [[ $1 == setup ]]; then
    line="mkdir -p $code && { [ -f $code/launch/host.sh ] || { gcloud storage cp $(quote "$RUN/launch/$SHA.tar") $code.tar && tar -xf $code.tar -C $code; }; } && "
  fi
  printf '%s\n' "${line}env $(host_environment) bash $code/launch/host.sh $(quote "$@")"
}

# all_hosts PHASE ARGUMENT...: on_hosts until each has answered. Returns 1 with a REASON naming those that failed.
all_hosts() {
  local try host
  local -a bad
  for ((try = 1; try <= ${SET[retries]}; try++)); do
    on_hosts "$@"
    bad=()
    for host in "${!STATUS[@]}"; do
      if [[ ${STATUS[$host]} != ok* ]]; then bad+=("$host (${STATUS[$host]})"); fi
    done
    if ((${#bad[@]})); then
      REASON="$1 failed on ${#bad[@]} of $HOSTS workers: ${bad[*]:0:8}"
      return 1
    fi
    if ((${#STATUS[@]} >= HOSTS)); then return 0; fi
    say "$1: ${#STATUS[@]} of $HOSTS workers answered (try $try of ${SET[retries]})"
    sleep "${SET[retry-seconds]}"
  done
  REASON="$1: only ${#STATUS[@]} of $HOSTS workers answered; $(silent_nodes)"
  return 1
}

silent_nodes() {
  local node said=''
  for node in "${NODES[@]}"; do said+=" $node: $(tail -n 2 "$WORK/$node.err" 2>/dev/null | tr '\n' ' ')"; done
  echo "the cloud says:${said}"
}

# watch: until training is done, failed or interrupted.
watch() {
  local silent=0
  while :; do
    slice_state
    if [[ $STATE != ACTIVE ]]; then
      OUTCOME=interrupted REASON="the slice was taken away ($STATE)"
      return
    fi
    on_hosts status "--config=${SET[config]}" "${OVERRIDES[@]}"
    if ((${#STATUS[@]} < HOSTS)); then
      silent=$((silent + 1))
      say "${#STATUS[@]} of $HOSTS workers answer ($silent of 3 times)"
      if ((silent >= 3)); then
        OUTCOME=failed REASON="dead worker: ${#STATUS[@]} of $HOSTS answer; $(silent_nodes)"
        if lost_node; then OUTCOME=interrupted; fi
        return
      fi
    else
      silent=0
      judge || return
    fi
    following || follow 0
    sleep "${SET[poll-seconds]}"
  done
}

# judge: OUTCOME from what all workers say; returns 1 when there is one. The first that ended badly is the cause: the
# others fail because it is gone.
judge() {
  local host state running=0 first=''
  OUTCOME='done'
  for host in "${!STATUS[@]}"; do
    state=${STATUS[$host]}
    if [[ $state == running* ]]; then
      running=$((running + 1))
      if hung "$host" "${state#running }"; then
        OUTCOME=failed REASON="worker $host has logged nothing for more than ${SET[hang-minutes]} minutes"
        return 1
      fi
    elif [[ $state == 'exit 0'* ]]; then
      continue
    else
      [[ $state =~ @([0-9]+) ]]
      if [[ -z $first ]] || ((${BASH_REMATCH[1]:-0} < first)); then
        first=${BASH_REMATCH[1]:-0} OUTCOME=failed REASON="dead worker $host: $state"
        if [[ $state == 'exit 143'* ]]; then OUTCOME=interrupted REASON="worker $host was told to stop"; fi
      fi
    fi
  done
  if [[ $OUTCOME == 'done' || $OUTCOME == interrupted ]] && ((running)); then return 0; fi # the rest still save
  return 1
}

hung() { # worker, seconds since its last log line: only worker 0 of the first slice logs all the time
  [[ $1 == "${NODES[0]}/0" ]] && ((${SET[hang-minutes]} > 0 && $2 > 60 * ${SET[hang-minutes]}))
}

# follow FROM: the log of worker 0 of the first slice, from a line on.
follow() {
  local -a command=(gcloud compute tpus tpu-vm ssh "${NODES[0]}" "${WHERE[@]}" --worker=0
    "--command=tail -n $1 -F \$HOME/aqaa/runs/${SET[name]}/log")
  if [[ -n ${SET[internal-ips]} ]]; then command+=(--internal-ip); fi
  follow_with "${command[@]}"
}
