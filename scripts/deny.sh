#!/usr/bin/env bash
# Checks the crates that the server and its fuzz targets depend on, as deny.toml says: licences, where they come from, what is
# banned, yanked versions, and RustSec's advisories.
#
# The advisories come from the network. Where it does not let us have them the rest is checked, and the output says so. With
# ADVISORY_DB, a git repository (folder or URL), they are taken from there, and it is an error if that does not work.
set -euo pipefail
cd "$(dirname "$0")/.."
version=0.20.2
manifests=(Cargo.toml fuzz/Cargo.toml)
official=https://github.com/RustSec/advisory-db # as in deny.toml
cargo=${CARGO:-cargo}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# Flags differ between minor versions. Debug, because it is built once and then works for a few seconds.
deny="cargo-deny"
if [[ $(cargo-deny --version 2>/dev/null) != "cargo-deny ${version%.*}."* ]]; then
  root=.work/cargo-deny-$version
  deny=$root/bin/cargo-deny
  if [ ! -x "$deny" ]; then
    echo "building cargo-deny $version into $root, which takes a minute or two"
    CARGO_PROFILE_DEV_DEBUG=0 "$cargo" install --quiet --locked --debug --root "$root" --version "$version" cargo-deny
  fi
fi

for manifest in "${manifests[@]}"; do
  "$cargo" fetch --quiet --locked --manifest-path "$manifest"
  # Cargo keeps what it has seen of the registry, and would not hear of what was yanked since. This asks anew and writes nothing.
  "$cargo" update --quiet --dry-run --manifest-path "$manifest"
done

from() { # from URL: cargo-deny fetches that for RustSec's database, into a folder of its own
  local n=${GIT_CONFIG_COUNT:-0}
  export GIT_CONFIG_COUNT=$((n + 1)) "GIT_CONFIG_KEY_$n=url.$1.insteadOf" "GIT_CONFIG_VALUE_$n=$official"
  export ADVISORY_DBS=$scratch/advisory-dbs
}
fetch() {
  GIT_TERMINAL_PROMPT=0 GIT_HTTP_LOW_SPEED_LIMIT=1000 GIT_HTTP_LOW_SPEED_TIME=30 "$deny" fetch db
}
of() { # of FORMAT: something of the newest commit of what was fetched
  git -C "$(echo "${ADVISORY_DBS:-.work/advisory-dbs}"/advisory-db-*/)" log -1 --format="$1"
}

instead=
if [ -n "${ADVISORY_DB:-}" ]; then
  if [ -d "$ADVISORY_DB" ]; then ADVISORY_DB=file://$(cd "$ADVISORY_DB" && pwd); fi
  from "$ADVISORY_DB"
  fetch
elif ! fetch 2>"$scratch/why"; then
  # Yanked versions are found by the same check, which wants a database: it gets one about no crate of ours.
  mkdir -p "$scratch/none/crates"
  cat >"$scratch/none/crates/none.md" <<'EOF'
```toml
[advisory]
id = "NONE-0000-0001"
package = "none"
date = "2000-01-01"
[versions]
patched = []
```
# About no crate of ours
EOF
  git -C "$scratch/none" init --quiet --initial-branch main
  git -C "$scratch/none" add .
  git -C "$scratch/none" -c user.name=none -c user.email=none -c commit.gpgsign=false commit --quiet --message none
  from "file://$scratch/none"
  fetch
  instead="NOT CHECKED, yanked"
fi

if [ -z "$instead" ]; then
  echo "advisories: ${ADVISORY_DB:-$official} of $(of %cs), commit $(of %h), $((($(date +%s) - $(of %ct)) / 86400)) days old"
else
  echo "advisories: NOT CHECKED, $official cannot be fetched: $(grep -m 1 fatal "$scratch/why" || tail -n 1 "$scratch/why")"
fi

check() { # check MANIFEST FLAGS...
  local manifest=$1 deny_check=("$deny" --offline --locked --manifest-path "$1") flags=("${@:2}" --deny index-failure)
  # Warnings in one line each: each duplicate comes with the tree of all that asks for it, hundreds of lines. Errors as they are.
  if "${deny_check[@]}" check "${flags[@]}" >"$scratch/log" 2>&1; then
    grep '^warning' "$scratch/log" || true
    echo "$manifest: $(tail -n 1 "$scratch/log")"
  else
    "${deny_check[@]}" --log-level error check "${flags[@]}" 2>&1
  fi | sed -E "s/advisories (ok|FAILED)/advisories ${instead:+$instead }\\1/"
}
# What deny.toml allows the server must need. The fuzz targets need less.
check Cargo.toml --deny license-exception-not-encountered
check fuzz/Cargo.toml --allow license-exception-not-encountered --allow license-not-encountered
