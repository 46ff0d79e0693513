#!/usr/bin/env bash
# Prints the folder that holds `prometheus` and `promtool`, on the last line of stdout. Ends with 3 when they can't be had.
#
# Where they are not installed, Debian's package is unpacked into the cache: that needs no root and starts no service.
set -euo pipefail
if command -v prometheus >/dev/null && command -v promtool >/dev/null; then
    dirname "$(command -v prometheus)"
    exit 0
fi
cache=${MLX_MANAGER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mlx-manager}/prometheus
if [ ! -x "$cache/usr/bin/promtool" ]; then
    missing() {
        echo "Prometheus is missing: apt-get install prometheus (or put prometheus and promtool on the PATH)" >&2
        exit 3
    }
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || missing
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    cd "$folder"
    download() { apt-get -q download -o APT::Sandbox::User= prometheus >&2; }
    if ! download; then
        # A fresh image has no package lists.
        [ "$(id -u)" = 0 ] && apt-get -q update >&2 && download || missing
    fi
    dpkg-deb --extract prometheus_*.deb unpacked
    mkdir -p "$(dirname "$cache")"
    rm -rf "$cache"
    mv unpacked "$cache"
fi
echo "$cache/usr/bin"
