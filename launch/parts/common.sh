# shellcheck shell=bash
# shellcheck disable=SC2034  # set here, read in the other parts
# What every backend needs: settings, quoting, retries, the count of failures without progress.

# shellcheck disable=SC2016  # the backquotes are text
# name|default|what it is. A flag --name, AQAA_NAME in the environment and AQAA_NAME in the --env file set the same thing.
OPTIONS='backend||tpu-vm, gke or local
name||of the run: lower-case letters, digits and -; the slice or workload is called so
config||file for `aqaa train --config`; its overrides follow after --
run-dir||gs://BUCKET/PATH (tpu-vm, gke) or a folder (local)
project||of the cloud
zone||us-east5-a, say
location||gke: of the cluster (default: the region of --zone)
topology||v5p:8x8x16, say: the chips of one slice and how they are wired
accelerator||v5p-2048, say: instead of --topology, wired as the cloud likes
slices|1|slices that train together
provision|on-demand|on-demand, spot or reserved
runtime-version||software of the TPU VMs (default: by generation)
valid-until||give the queue up after this long, 12h say
network||VPC network of the TPU VMs
subnetwork||of that network
service-account||that the hosts act as; on gke a Kubernetes one
internal-ips||1: no public addresses; ssh goes the internal way
tool|xpk|gke: xpk, or jobset (a manifest given to kubectl)
cluster||gke: name of the cluster
image|python:3.12|gke: container image with Python 3.11 or newer
storage||gke with xpk: the attached storage that mounts the bucket at --mount
logs||folder for the logs of the launcher (default out/launch)
mount|/bucket|gke: where the bucket is mounted
processes|2|local: processes
devices|4|local: virtual CPU devices of each
max-failures|3|stop after this many failures in a row without a new saved step
max-restarts|50|gke: restarts of the workload in all
min-bandwidth||refuse to train below this all-reduce bandwidth, GB/s per device
hang-minutes|30|a log of worker 0 that is silent this long is a failure; 0: never
preflight|1|0: train unchecked
keep||1: leave the slice when the run has been trained to the end
end||1: end the run: its processes save, its slice or workload is deleted
python|python3|local: the Python that has aqaa_jax
allow-dirty||1: ship uncommitted changes of tracked files too
dry-run||1: print every command, run none
retries|6|tries of each cloud command
retry-seconds|5|pause before the second try; it doubles, up to a minute
poll-seconds|30|between looks at slice and workers'
declare -A SET=()
declare -a OVERRIDES=() HOST_ENV=()
ANSWER='' PROGRESS=0 OUTCOME='' REASON='' SHA='' DIRTY='' LOGS='' WORK=''

say() { printf '[tpu_run] %s\n' "$*" >&2; }
die() { # exit code, message: 2 bad usage, 3 refused by the cloud, 4 no progress, 1 anything else
  printf '[tpu_run] %s\n' "${*:2}" >&2
  exit "$1"
}

# quote WORD...: one line that a shell reads as exactly these words.
quote() {
  local word line=''
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || word=${word@Q}
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

# once COMMAND...: run it without retries; a dry run prints it instead.
once() {
  if [[ -n ${SET[dry-run]} ]]; then quote "$@"; else "$@"; fi
}

# cloud COMMAND...: run it until it succeeds; its output is ANSWER. Returns 4 if what it asks for is not there, 5 if what
# it makes is there already. Ends the launcher where the answer would stay the same, and after the last try.
cloud() {
  local try pause=${SET[retry-seconds]} said
  ANSWER=''
  if [[ -n ${SET[dry-run]} ]]; then
    quote "$@"
    return 0
  fi
  for ((try = 1; ; try++)); do
    if ANSWER=$("$@" 2>"$WORK/said" </dev/null); then return 0; fi
    said=$(tr '\n' ' ' <"$WORK/said" | cut -c1-600)
    if grep -qiE 'quota' <<<"$said"; then refuse_quota "$said"; fi
    if grep -qE 'ALREADY_EXISTS|AlreadyExists|already exists' <<<"$said"; then return 5; fi
    if grep -qE 'NOT_FOUND|NotFound|not found|matched no objects' <<<"$said"; then return 4; fi
    if grep -qE 'PERMISSION_DENIED|UNAUTHENTICATED|INVALID_ARGUMENT|unrecognized arguments|do(es)? not (currently )?have' <<<"$said"; then
      die 3 "refused: $(quote "${@:1:5}") ...: $said"
    fi
    ((try < ${SET[retries]})) || die 3 "gave up after $try tries: $(quote "$@"): $said"
    say "try $try of ${SET[retries]} failed, again in ${pause}s: $(quote "${@:1:5}") ...: $said"
    sleep "$pause"
    pause=$((pause * 2 > 60 ? 60 : pause * 2))
  done
}

refuse_quota() {
  die 3 "the quota of project ${SET[project]} in ${SET[zone]} does not allow ${SET[topology]}${SET[accelerator]} x ${SET[slices]}" \
    "(${SET[provision]}); ask for more quota, fewer chips or another --provision. The cloud says: $1"
}

# A run is where its newest saved steps are: their sum over the stages. It grows with every save and never falls.
steps_saved() { # folders of saved steps, one in each line
  awk -F/ '{ n = $NF == "" ? NF - 1 : NF }
    n > 2 && $n ~ /^[0-9]+$/ && $(n - 1) == "checkpoints" && $n + 0 > best[$(n - 2)] { best[$(n - 2)] = $n + 0 }
    END { for (stage in best) sum += best[stage]; print sum + 0 }'
}

# supervise: attempt after attempt until one is done, or --max-failures of them brought no new saved step. A backend gives
# `attempt` (sets OUTCOME to done, failed or interrupted, and REASON), and `progress` (sets PROGRESS).
supervise() {
  local failures=0 best
  progress
  best=$PROGRESS
  while :; do
    attempt
    if [[ $OUTCOME == 'done' ]]; then return 0; fi
    progress
    if ((PROGRESS > best)); then failures=0 best=$PROGRESS; fi
    if [[ $OUTCOME == failed ]]; then failures=$((failures + 1)); fi
    if ((failures >= ${SET[max-failures]})); then
      die 4 "$REASON; stopping after $failures failures without a saved step beyond $best. Logs: $LOGS"
    fi
    say "$REASON; going on from the newest saved step ($PROGRESS in all; failures without progress: $failures of ${SET[max-failures]})"
    sleep "${SET[retry-seconds]}"
  done
}
