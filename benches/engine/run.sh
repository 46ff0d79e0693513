#!/usr/bin/env bash
# Sets up what the engine's benchmarks need, a Python with mlx-lm and the random models, and runs one of them:
# run.sh bench|load|soak [OPTIONS OF IT]. The daemon is target/release/mlx-manager, or what MLX_MANAGER_BIN names.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONDONTWRITEBYTECODE=1
what=$1
shift
binary=${MLX_MANAGER_BIN:-${CARGO_TARGET_DIR:-target}/release/mlx-manager}
cache=${MLX_MANAGER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mlx-manager}
python=$cache/goldens/bin/python

make goldens-python >&2
# Whatever they are made from is in the folder's name.
models=$cache/bench-models-$(cat benches/engine/model.py tools/goldens/requirements.txt | sha256sum | cut -c1-12)
"$python" benches/engine/model.py "$models" >&2

case $what in
bench)
    # The peer computes with the BLAS that the daemon is linked with. A Mac has one for both.
    prefix=$(sed -n 's/^MLX_MANAGER_MLX_PREFIX = .*value = "\([^"]*\)".*/\1/p' .cargo/config.toml 2>/dev/null || true)
    preload=()
    [ -z "$prefix" ] || preload=(--preload "$prefix/lib/libmlxblas.so")
    mkdir -p target
    exec "$python" benches/engine/bench.py --binary "$binary" --models "$models" --peer "$python" "${preload[@]}" \
        --json target/bench-engine.json "$@"
    ;;
load) exec "$python" benches/engine/load.py --binary "$binary" --models "$models" --requests 1000 "$@" ;;
soak) exec "$python" benches/engine/load.py --binary "$binary" --models "$models" --minutes "${1:-60}" --connections 24 "${@:2}" ;;
*) echo "run.sh: $what is none of bench, load, soak" >&2; exit 2 ;;
esac
