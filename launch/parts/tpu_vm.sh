# shellcheck shell=bash
# shellcheck disable=SC2034  # OUTCOME and REASON are read by supervise
# Backend tpu-vm, the slice: TPU VMs through queued resources, absent -> queued -> active, and back after a preemption.

# shellcheck source=launch/parts/bucket.sh
. "$HERE/parts/bucket.sh"
# shellcheck source=launch/parts/tpu_hosts.sh
. "$HERE/parts/tpu_hosts.sh"
STATE='' DRY_STATE=ABSENT
declare -a WHERE=() NODES=()

run_backend() {
  require project zone
  read_topology
  WHERE=("--zone=${SET[zone]}" "--project=${SET[project]}" --quiet)
  NODES=("${SET[name]}")
  if ((${SET[slices]} > 1)); then mapfile -t NODES < <(seq -f "${SET[name]}-%.0f" 0 $((${SET[slices]} - 1))); fi
  trap 'stop_following; rm -rf "$WORK"' EXIT
  open_run_dir
  if [[ -n ${SET[end]} ]]; then
    on_hosts stop
    delete_slice
    say "ended: ${SET[name]}; what is saved stays in $RUN"
    return
  fi
  trap 'say "no longer watching; slice and training go on. The same command attaches again; with --end it ends them"; exit 143' INT TERM
  supervise
  say "trained to the end: $RUN"
  if [[ -n ${SET[keep]} ]]; then say "slice ${SET[name]} stays (--keep) and costs until --end"; else delete_slice; fi
}

slice_state() {
  STATE=ABSENT
  if cloud gcloud compute tpus queued-resources describe "${SET[name]}" "${WHERE[@]}" '--format=value(state.state)'; then STATE=$ANSWER; fi
  if [[ -n ${SET[dry-run]} ]]; then STATE=$DRY_STATE; fi # nothing was asked: absent until it is made
}

create_slice() {
  local name result=0
  local -a command=(gcloud compute tpus)
  if [[ -n $WIRING ]]; then command=(gcloud alpha compute tpus); fi # the others know no wiring of the newer chips
  command+=(queued-resources create "${SET[name]}" "${WHERE[@]}" "--runtime-version=$(runtime_version)" "--labels=aqaa-run=${SET[name]}")
  if [[ -n $WIRING ]]; then command+=("--type=$(api_type)" "--topology=$WIRING"); else command+=("--accelerator-type=${SET[accelerator]}"); fi
  if ((${SET[slices]} > 1)); then command+=("--node-count=${SET[slices]}" "--node-prefix=${SET[name]}"); else command+=("--node-id=${SET[name]}"); fi
  case ${SET[provision]} in spot | reserved) command+=("--${SET[provision]}") ;; esac
  if [[ -n ${SET[valid-until]} ]]; then command+=("--valid-until-duration=${SET[valid-until]}"); fi
  for name in network subnetwork service-account; do
    if [[ -n ${SET[$name]} ]]; then command+=("--$name=${SET[$name]}"); fi
  done
  if [[ -n ${SET[internal-ips]} ]]; then command+=(--internal-ips); fi
  say "asking for ${SET[topology]}${SET[accelerator]} x ${SET[slices]} (${SET[provision]}) as ${SET[name]}"
  cloud "${command[@]}" || result=$?
  # Already there (5): an earlier try reached the cloud although its answer did not reach us.
  ((result == 0 || result == 5)) || die 3 "refused: $(quote "${command[@]}"): $(head -c 600 "$WORK/said")"
  DRY_STATE=ACTIVE
}

runtime_version() {
  case ${SET[runtime-version]}$GENERATION in
    v5e) echo v2-alpha-tpuv5-lite ;;
    v5p) echo v2-alpha-tpuv5 ;;
    v6e) echo v2-alpha-tpuv6e ;;
    v4) echo tpu-ubuntu2204-base ;;
    tpu7x) die 2 "--runtime-version is required for tpu7x, or --backend=gke" ;;
    *) echo "${SET[runtime-version]}" ;;
  esac
}

delete_slice() { # one that is gone already is what we want
  cloud gcloud compute tpus queued-resources delete "${SET[name]}" "${WHERE[@]}" --force
  return 0
}

# active_slice: waits for it, making it first where there is none. Returns 1 if the cloud gave up on it.
active_slice() {
  local before=''
  while :; do
    slice_state
    if [[ $STATE != "$before" ]]; then say "slice ${SET[name]}: $STATE"; fi
    before=$STATE
    case $STATE in
      ACTIVE) return 0 ;;
      ABSENT) create_slice ;;
      SUSPENDED) delete_slice ;;
      FAILED) slice_failed && return 1 ;;
      CREATING | ACCEPTED | WAITING_FOR_RESOURCES | PROVISIONING | SUSPENDING | DELETING) sleep "${SET[poll-seconds]}" ;;
      *) die 1 "slice ${SET[name]} is in state '$STATE', which the launcher does not know" ;;
    esac
  done
}

slice_failed() {
  must gcloud compute tpus queued-resources describe "${SET[name]}" "${WHERE[@]}" '--format=value(state.failedData.error.message)'
  REASON="the cloud gave up on the slice: ${ANSWER:-no reason given}"
  delete_slice
  if grep -qi quota <<<"$REASON"; then refuse_quota "$REASON"; fi
}

# lost_node: whether a node is gone. It can be before its queued resource says so.
lost_node() {
  local node
  for node in "${NODES[@]}"; do
    ANSWER=ABSENT
    cloud gcloud compute tpus tpu-vm describe "$node" "${WHERE[@]}" '--format=value(state)'
    if [[ $ANSWER != READY ]]; then
      REASON="node $node is ${ANSWER:-gone}"
      delete_slice
      return 0
    fi
  done
  return 1
}
