# shellcheck shell=bash
# shellcheck disable=SC2034  # SET is read in the other parts
# Backend gke: a JobSet on a cluster, made by xpk or given to kubectl. Kubernetes restarts it; host.sh counts the failures.

# shellcheck source=launch/parts/bucket.sh
. "$HERE/parts/bucket.sh"
CONTAINER=jax-tpu # xpk calls it so

run_backend() {
  require project zone cluster image mount
  case ${SET[tool]} in
    xpk) require storage ;;
    jobset)
      require service-account
      [[ -n ${SET[topology]} ]] || die 2 "--topology is required for --tool=jobset: nodes are chosen by it"
      ;;
    *) die 2 "--tool is ${SET[tool]}; expected xpk or jobset" ;;
  esac
  read_topology
  trap 'stop_following; rm -rf "$WORK"' EXIT
  must gcloud container clusters get-credentials "${SET[cluster]}" "--location=${SET[location]:-${SET[zone]%-*}}" "--project=${SET[project]}"
  if [[ -n ${SET[end]} ]]; then
    cloud kubectl delete jobset "${SET[name]}"
    say "ended: ${SET[name]}"
    return
  fi
  trap 'say "no longer watching; the workload goes on. The same command attaches again; with --end it ends it"; exit 143' INT TERM
  workload_state
  case $STATE in
    '') say "workload ${SET[name]} runs already; attaching" ;;
    Completed | Failed)
      cloud kubectl delete jobset "${SET[name]}"
      STATE=ABSENT
      ;;
  esac
  if [[ $STATE == ABSENT ]]; then
    open_run_dir
    "submit_${SET[tool]}"
  else
    RUN=${SET[run-dir]%/} LOGS=${SET[logs]:-$ROOT/out/launch}/${SET[name]}
    once mkdir -p "$LOGS"
  fi
  watch_workload
}

# workload_state: STATE is Completed, Failed, empty while it runs, or ABSENT; RESTARTS how often it was restarted.
workload_state() {
  STATE=ABSENT RESTARTS=0
  if cloud kubectl get jobset "${SET[name]}" '-o=jsonpath={.status.terminalState} {.status.restarts}'; then
    STATE=${ANSWER%% *} RESTARTS=${ANSWER##* }
  fi
  if [[ -n ${SET[dry-run]} ]]; then STATE=${DRY_STATE:-ABSENT}; fi
}

# pod_command: what the container runs. The code is in the bucket, the bucket is mounted.
pod_command() {
  local code=/tmp/aqaa/code/$SHA here=${SET[mount]}/${RUN#gs://*/}
  printf '%s\n' "mkdir -p $code && tar -xf $(quote "$here/launch/$SHA.tar") -C $code && exec env $(host_environment) AQAA_HOME=/tmp/aqaa $(quote "AQAA_MOUNT=${SET[mount]}") bash $code/launch/host.sh pod $([[ ${SET[preflight]} == 1 ]] && preflight_arguments) -- $(quote "--config=${SET[config]}" "${OVERRIDES[@]}")"
}

submit_xpk() {
  local type=${SET[accelerator]}
  if [[ -n $WIRING ]]; then type=$(api_type)-$WIRING; fi
  must xpk workload create "--cluster=${SET[cluster]}" "--workload=${SET[name]}" "--project=${SET[project]}" "--zone=${SET[zone]}" \
    "--tpu-type=$type" "--num-slices=${SET[slices]}" "--docker-image=${SET[image]}" "--max-restarts=${SET[max-restarts]}" \
    "--storage=${SET[storage]}" --termination-grace-period-seconds=120 "--command=$(pod_command)"
  DRY_STATE=Completed
}

submit_jobset() {
  if [[ -n ${SET[dry-run]} ]]; then jobset | sed 's/^/# /'; else jobset >"$LOGS/jobset.yaml"; fi
  must kubectl apply -f "$LOGS/jobset.yaml"
  DRY_STATE=Completed
}

# jobset: one job for each slice, one pod for each of its hosts. Any failed pod restarts the whole set, because a slice
# without one host is none; exit code 3 (no progress) does not.
jobset() {
  local hosts chips spot='' command
  hosts=$(hosts_of_slice)
  chips=$((CHIPS < 4 ? CHIPS : 4))
  if [[ ${SET[provision]} == spot ]]; then spot=$'\n                cloud.google.com/gke-spot: "true"'; fi
  command=$(pod_command)
  cat <<END
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: ${SET[name]}
  labels: {aqaa-run: ${SET[name]}}
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  ttlSecondsAfterFinished: 604800
  failurePolicy:
    maxRestarts: ${SET[max-restarts]}
    rules:
    - {action: FailJobSet, onJobFailureReasons: [PodFailurePolicy]}
  replicatedJobs:
  - name: slice-job
    replicas: ${SET[slices]}
    template:
      spec:
        parallelism: $hosts
        completions: $hosts
        completionMode: Indexed
        backoffLimit: 0
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes: {containerName: $CONTAINER, operator: In, values: [3]}
        template:
          metadata:
            annotations: {gke-gcsfuse/volumes: "true"}
          spec:
            restartPolicy: Never
            serviceAccountName: ${SET[service-account]}
            terminationGracePeriodSeconds: 120
            nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $(gke_accelerator)
                cloud.google.com/gke-tpu-topology: $WIRING$spot
            tolerations:
            - {key: google.com/tpu, operator: Exists}
            containers:
            - name: $CONTAINER
              image: ${SET[image]}
              command: [bash, -c, '${command//\'/\'\'}']
              ports: [{containerPort: 8471}, {containerPort: 8482}]
              resources: {limits: {google.com/tpu: $chips}}
              volumeMounts:
              - {name: run, mountPath: ${SET[mount]}}
              - {name: shm, mountPath: /dev/shm}
            volumes:
            - {name: shm, emptyDir: {medium: Memory}}
            - name: run
              csi:
                driver: gcsfuse.csi.storage.gke.io
                volumeAttributes: {bucketName: $(cut -d/ -f3 <<<"$RUN"), mountOptions: "implicit-dirs"}
END
}

gke_accelerator() {
  case $GENERATION in
    v5e) echo tpu-v5-lite-podslice ;;
    v4) echo tpu-v4-podslice ;;
    tpu7x) echo tpu7x ;;
    *) echo "tpu-$GENERATION-slice" ;;
  esac
}

watch_workload() {
  local restarts=''
  while :; do
    workload_state
    if [[ -n $restarts && $RESTARTS != "$restarts" ]]; then say "restart $RESTARTS of at most ${SET[max-restarts]}; going on from the newest saved step"; fi
    restarts=$RESTARTS
    case $STATE in
      Completed)
        if [[ -n ${SET[dry-run]} ]]; then follow; fi
        stop_following
        collect_logs
        say "trained to the end: $RUN"
        return
        ;;
      Failed)
        cloud kubectl get jobset "${SET[name]}" '-o=jsonpath={.status.conditions[?(@.type=="Failed")].message}'
        REASON=$ANSWER
        stop_following
        collect_logs
        die 4 "workload ${SET[name]} failed after $RESTARTS restarts: $REASON. Logs: $LOGS"
        ;;
      ABSENT) die 1 "workload ${SET[name]} was deleted" ;;
    esac
    following || follow
    sleep "${SET[poll-seconds]}"
  done
}

follow() { # the log of worker 0 of slice 0
  follow_with kubectl logs --follow --ignore-errors --pod-running-timeout=1m "--container=$CONTAINER" \
    "--selector=jobset.sigs.k8s.io/jobset-name=${SET[name]},jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
}
