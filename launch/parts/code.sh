# shellcheck shell=bash
# The code that is shipped: one commit of this repository, as an archive named by its SHA.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
SHIPPED=(setup.py pyproject.toml README.md aqaa_jax configs launch)

# choose_code: SHA, and DIRTY if it is more than the last commit. Uncommitted work is refused or, with --allow-dirty, made
# a commit of its own that no branch holds (tracked files only).
choose_code() {
  SHA=$(git -C "$ROOT" rev-parse HEAD) || die 2 "$ROOT is not a git repository; the launcher ships a commit"
  local changed
  changed=$(git -C "$ROOT" status --porcelain -- "${SHIPPED[@]}")
  [[ -n $changed ]] || return 0
  if [[ -z ${SET[allow-dirty]} ]]; then
    die 2 "uncommitted changes ($(wc -l <<<"$changed") files, ${changed%%$'\n'*} ...); commit them, or --allow-dirty"
  fi
  DIRTY=1
  local made
  made=$(git -C "$ROOT" stash create)
  SHA=${made:-$SHA}
  say "shipping uncommitted changes of tracked files as $SHA"
}

# pack_code FILE: the archive of SHA; not compressed, since most of it is weights.
pack_code() {
  once git -C "$ROOT" archive --format=tar -o "$1" "$SHA" -- "${SHIPPED[@]}"
}

# snapshot FILE: what this launch is, for the run directory.
snapshot() {
  local name
  {
    printf 'launched: %s by %s\nsha: %s\ndirty: %s\n' "$(date -u +%FT%TZ)" "$(id -un)@$(uname -n)" "$SHA" "${DIRTY:-0}"
    printf 'arguments: %s\n' "$(quote "${OVERRIDES[@]}")"
    printf 'host environment: %s\n' "$(quote "${HOST_ENV[@]}")"
    for name in $(printf '%s\n' "${!SET[@]}" | sort); do printf '%s: %s\n' "$name" "${SET[$name]}"; done
  } >"$1"
}
