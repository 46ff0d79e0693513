#!/bin/sh
# Says in one line what is wrong with the Rust toolchain, where cargo would say it in many.
cd "$(dirname "$0")/.." || exit 1

if ! command -v cargo >/dev/null || ! command -v rustc >/dev/null; then
    echo "Rust is missing: install it with rustup (https://rustup.rs), then run the command again" >&2
    exit 1
fi
# With rustup this also installs the toolchain that rust-toolchain.toml names.
if ! found=$(rustc --version); then
    echo "the toolchain that rust-toolchain.toml names is not installed: run \`rustup toolchain install\`" >&2
    exit 1
fi
found=$(echo "$found" | cut -d ' ' -f 2)
wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
if [ "$(printf '%s\n' "$wanted" "$found" | sort -V | head -n 1)" != "$wanted" ]; then
    echo "Rust $found is too old, $wanted is needed: run \`rustup update\`, or install rustup (https://rustup.rs) beside it" >&2
    exit 1
fi
