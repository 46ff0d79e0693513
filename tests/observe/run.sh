#!/usr/bin/env bash
# Holds metrics, dashboards and alerts against the real thing: Debian's Prometheus scrapes the daemon under load and
# answers every panel's query, promtool reads rules and pages, and TypeScript holds the dashboards against Grafana's types.
# Where Prometheus or Node.js can't be had, that part is skipped with a line that says so; in CI that is a failure.
set -euo pipefail
cd "$(dirname "$0")/../.."
binary=${1:-${CARGO_TARGET_DIR:-target}/debug/mlx-manager}
[ -x "$binary" ] || cargo build
cache=${MLX_MANAGER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mlx-manager}

skip() {
    echo "skipped: $1" >&2
    [ "${CI:-}" != true ] || exit 1
}

if prometheus=$(tests/observe/prometheus.sh | tail -n 1) && [ -n "$prometheus" ]; then
    PYTHONDONTWRITEBYTECODE=1 python3 tests/observe/check.py "$binary" "$prometheus"
else
    skip "no panel was asked, for want of Prometheus"
fi

node_is_new_enough() {
    command -v npm >/dev/null && node -e 'process.exit(parseInt(process.versions.node) >= 18 ? 0 : 1)' 2>/dev/null
}
if ! node_is_new_enough && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get -q install --yes --no-install-recommends nodejs npm >&2 ||
        { apt-get -q update >&2 && apt-get -q install --yes --no-install-recommends nodejs npm >&2; } || true
fi
if node_is_new_enough; then
    lock=$(cat tests/observe/schema/package-lock.json tests/observe/schema/check.mjs | sha256sum | cut -c1-12)
    schema=$cache/schema-$lock
    if [ ! -e "$schema/ready" ]; then
        mkdir -p "$schema"
        cp tests/observe/schema/* "$schema/"
        npm ci --prefix "$schema" --no-audit --no-fund --ignore-scripts --loglevel=error >&2 && touch "$schema/ready" ||
            skip "no dashboard was held against Grafana's types, for want of the packages in tests/observe/schema"
    fi
    dashboards=("$PWD"/dashboards/*.json)
    [ ! -e "$schema/ready" ] || (cd "$schema" && node check.mjs "${dashboards[@]}")
else
    skip "no dashboard was held against Grafana's types, for want of Node.js 18 and npm (apt-get install nodejs npm)"
fi
