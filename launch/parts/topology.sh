# shellcheck shell=bash
# Chips, hosts and names of a slice, worked out from --topology (v5p:8x8x16) or --accelerator (v5p-2048).

GENERATION='' WIRING='' CHIPS=0 DEVICES=0

# read_topology: GENERATION, WIRING (empty if the cloud chooses), CHIPS of a slice, DEVICES that JAX sees in all slices.
read_topology() {
  local size
  if [[ -n ${SET[topology]} && -n ${SET[accelerator]} ]]; then die 2 "give --topology or --accelerator, not both"; fi
  if [[ ${SET[topology]} =~ ^(v4|v5e|v5p|v6e|tpu7x):([0-9]+(x[0-9]+){1,2})$ ]]; then
    GENERATION=${BASH_REMATCH[1]} WIRING=${BASH_REMATCH[2]}
    CHIPS=$((${WIRING//x/*}))
  elif [[ ${SET[accelerator]} =~ ^(v4|v5litepod|v5p|v6e)-([0-9]+)$ ]]; then
    GENERATION=${BASH_REMATCH[1]/v5litepod/v5e} size=${BASH_REMATCH[2]}
    # The names of v4 and v5p count cores, two on a chip; the others count chips.
    case $GENERATION in v4 | v5p) CHIPS=$((size / 2)) ;; *) CHIPS=$size ;; esac
  else
    die 2 "--topology='${SET[topology]}' --accelerator='${SET[accelerator]}': expected --topology like v5p:8x8x16 or" \
      "--accelerator like v5p-2048"
  fi
  ((CHIPS > 0 && ${SET[slices]} > 0)) || die 2 "${SET[topology]}${SET[accelerator]} x ${SET[slices]} slices has no chips"
  DEVICES=$((CHIPS * SET[slices]))
  if [[ $GENERATION == tpu7x ]]; then DEVICES=$((DEVICES * 2)); fi # its chips are two devices each
}

# api_type: the generation as gcloud and xpk call it.
api_type() { if [[ $GENERATION == v5e ]]; then echo v5litepod; else echo "$GENERATION"; fi; }

# hosts_of_slice: machines of one slice on GKE. Four chips each, where there is more than one machine.
hosts_of_slice() { echo $((CHIPS < 4 ? 1 : CHIPS / 4)); }
