#!/usr/bin/env bash
# Train on one slice of TPUs or several, on a GKE cluster, or on this machine; the same command goes on with a run.
# See launch/README.md.
set -uo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/parts/common.sh
. "$HERE/parts/common.sh"
# shellcheck source=launch/parts/code.sh
. "$HERE/parts/code.sh"
# shellcheck source=launch/parts/topology.sh
. "$HERE/parts/topology.sh"

usage() {
  cat <<'END'
usage: launch/tpu_run.sh --backend=tpu-vm|gke|local --name=NAME --config=FILE --run-dir=DIR [--OPTION=VALUE ...]
                         [--env=FILE] [--set-env=KEY=VALUE ...] [-- ARGUMENTS FOR aqaa train ...]
END
  local name default text
  while IFS='|' read -r name default text; do
    printf '  --%-16s %s%s\n' "$name" "$text" "${default:+ (default $default)}"
  done <<<"$OPTIONS"
  cat <<'END'
  --env=FILE         lines AQAA_OPTION=VALUE (launch/example.env); flags beat the environment, which beats the file
  --set-env=K=V      a variable for the processes that train; may be repeated
exit codes: 0 trained to the end, 2 bad usage, 3 refused by the cloud, 4 failures without progress, 143 stopped
END
}

# read_settings ARGUMENTS: fills SET, HOST_ENV and OVERRIDES; an unknown name is an error, wherever it stands.
read_settings() {
  local name default variable line file='' word
  local -A flags=()
  while (($#)); do
    word=$1
    shift
    [[ $word == --* && $word != *=* ]] && case $word in
      --) OVERRIDES=("$@") && break ;;
      --help) usage && exit 0 ;;
      --dry-run | --allow-dirty | --keep | --end | --internal-ips) word+='=1' ;;
      *)
        (($#)) || die 2 "$word has no value"
        word+="=$1"
        shift
        ;;
    esac
    [[ $word == --*=* ]] || die 2 "unexpected argument $word; arguments for aqaa train follow after --"
    name=${word%%=*} name=${name#--}
    case $name in
      env) file=${word#*=} ;;
      set-env) HOST_ENV+=("${word#*=}") ;;
      *) flags[$name]=${word#*=} ;;
    esac
  done
  local -A known=() values=()
  while IFS='|' read -r name default _; do
    known[$name]=1 values[$name]=$default
  done <<<"$OPTIONS"
  if [[ -n $file ]]; then
    [[ -r $file ]] || die 2 "--env $file cannot be read"
    while IFS= read -r line || [[ -n $line ]]; do
      [[ $line =~ ^[[:space:]]*(#|$) ]] && continue
      [[ $line =~ ^AQAA_([A-Z_]+)=(.*)$ ]] || die 2 "$file: '$line' is not AQAA_OPTION=VALUE"
      name=${BASH_REMATCH[1],,} name=${name//_/-}
      [[ -n ${known[$name]:-} ]] || die 2 "$file: there is no option $name"
      values[$name]=${BASH_REMATCH[2]}
    done <"$file"
  fi
  for name in "${!known[@]}"; do
    variable=AQAA_${name^^} variable=${variable//-/_}
    SET[$name]=${flags[$name]-${!variable-${values[$name]}}}
  done
  for name in "${!flags[@]}"; do [[ -n ${known[$name]:-} ]] || die 2 "there is no option --$name; see --help"; done
}

require() { # option...: these must be given
  local name
  for name in "$@"; do [[ -n ${SET[$name]} ]] || die 2 "--$name is required for --backend=${SET[backend]}"; done
}

check_settings() {
  require backend name config run-dir
  [[ ${SET[name]} =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] ||
    die 2 "--name is ${SET[name]}; expected up to 40 lower-case letters, digits and -, a letter first"
  [[ -f $ROOT/${SET[config]%%:*} || -f ${SET[config]%%:*} ]] || die 2 "--config ${SET[config]}: no such file"
  case ${SET[provision]} in on-demand | spot | reserved) ;; *) die 2 "--provision is ${SET[provision]}; expected on-demand, spot or reserved" ;; esac
  local name
  for name in slices processes devices max-failures max-restarts hang-minutes retries retry-seconds poll-seconds; do
    [[ ${SET[$name]} =~ ^[0-9]+$ ]] || die 2 "--$name is ${SET[$name]}; expected a whole number"
  done
  for name in "${HOST_ENV[@]}"; do [[ $name =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || die 2 "--set-env $name; expected KEY=VALUE"; done
}

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 501)) || die 2 "this is bash $BASH_VERSION; expected 5.1 or newer"
read_settings "$@"
check_settings
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
LOGS=$ROOT/out/launch/${SET[name]}
case ${SET[backend]} in
  tpu-vm | gke | local) ;;
  *) die 2 "--backend is ${SET[backend]}; expected tpu-vm, gke or local" ;;
esac
choose_code
# shellcheck source=/dev/null
. "$HERE/parts/${SET[backend]//-/_}.sh"
run_backend
