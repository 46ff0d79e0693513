#!/usr/bin/env bash
# Drives the official OpenAI and Anthropic Python SDKs against a running daemon, and through one against a simulated provider.
# Where Python's venv module or the packages can't be had, it says so and fails: a skipped proof is no proof.
set -euo pipefail
cd "$(dirname "$0")/../.."
binary=${1:-target/debug/mlx-manager}
[ -x "$binary" ] || cargo build
cache=${MLX_MANAGER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mlx-manager}
environment=$cache/sdk-$(sha256sum tests/sdk/requirements.txt | cut -c1-12)
if [ ! -e "$environment/ready" ]; then
    python3 -m venv "$environment"
    "$environment/bin/pip" install --quiet --disable-pip-version-check --requirement tests/sdk/requirements.txt
    touch "$environment/ready"
fi
"$environment/bin/python" tests/sdk/check.py "$binary"
exec "$environment/bin/python" tests/sdk/through.py "$binary"
