#!/usr/bin/env bash
# Compares what Logfire's own SDK and the daemon send for the same calls, and both with docs/logfire.md.
# `tests/parity/run.sh --write` writes the page anew. Without Python's venv module or the packages it fails: a skipped
# proof is no proof.
set -euo pipefail
cd "$(dirname "$0")/../.."
binary=target/debug/mlx-manager
[ -x "$binary" ] || cargo build
cache=${MLX_MANAGER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mlx-manager}
environment=$cache/parity-$(sha256sum tests/parity/requirements.txt | cut -c1-12)
if [ ! -e "$environment/ready" ]; then
    python3 -m venv "$environment"
    "$environment/bin/pip" install --quiet --disable-pip-version-check --requirement tests/parity/requirements.txt
    touch "$environment/ready"
fi
exec "$environment/bin/python" tests/parity/parity.py "$binary" "$@"
