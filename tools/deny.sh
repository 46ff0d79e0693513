#!/usr/bin/env bash
# Checks Cargo.lock against deny.toml with cargo-deny, which is built once and kept beside the MLX prefix.
# Licences, duplicate versions and sources are checked offline; advisories only where their database can be fetched.
set -euo pipefail
cd "$(dirname "$0")/.."

version=0.20.2
tools=${MLX_MANAGER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mlx-manager}/tools/cargo-deny-$version
deny=$tools/bin/cargo-deny

if [ ! -x "$deny" ]; then
    echo "building cargo-deny $version, once"
    build=$(mktemp -d)
    trap 'rm -rf "$build"' EXIT
    # Unoptimised it is built in a third of the time, and still checks in seconds.
    CARGO_TARGET_DIR=$build CARGO_PROFILE_DEV_DEBUG=false \
        cargo install cargo-deny --quiet --version "$version" --locked --debug --root "$tools"
fi

# cargo-deny reads the sources of all crates, those for other systems included.
cargo fetch --quiet --locked
"$deny" --offline --log-level error check --hide-inclusion-graph licenses bans sources

if "$deny" --log-level off fetch db >/dev/null 2>&1; then
    "$deny" check --disable-fetch advisories
else
    echo "advisories skipped: their database can't be reached"
fi
