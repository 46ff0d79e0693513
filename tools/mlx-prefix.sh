#!/usr/bin/env bash
# Makes the crates mlx-rs and mlx-sys build on Linux, for which their own build script isn't made.
#
# It fills a folder, the prefix, with MLX and OpenBLAS (from their wheels on PyPI), MLX's C interface (compiled from the
# sources inside the mlx-sys crate), the Rust bindings to that, and libmlxblas.so, by which MLX finds OpenBLAS; and writes .cargo/config.toml, which tells cargo to use the prefix
# in place of mlx-sys's build script. The prefix lies outside target/, so `cargo clean` doesn't lose it.
#
# Call it as often as you like: once all is in place it takes a fraction of a second.
# MLX_BACKEND=cuda takes the wheel for NVIDIA GPUs (CUDA 13) in place of the one for CPUs.
# MLX_MANAGER_CACHE says where prefixes and tools are kept (default: ~/.cache/mlx-manager).
set -euo pipefail

cd "$(dirname "$0")/.."
recipe=tools/mlx
cache=${MLX_MANAGER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mlx-manager}
backend=${MLX_BACKEND:-cpu}
cxx=${CXX:-c++}
bindgen_version=0.72.1

say() { echo "mlx-prefix: $*" >&2; }
fail() { say "$@"; exit 1; }

# macOS builds mlx-rs as it was published; what that needs can't be installed from here.
if [ "$(uname -s)" = Darwin ]; then
    command -v cmake >/dev/null || fail "cmake is missing: run \`brew install cmake\`"
    xcrun metal --version >/dev/null 2>&1 ||
        fail "the Metal compiler is missing: install Xcode, then run \`xcodebuild -downloadComponent MetalToolchain\`"
    exit 0
fi
[ "$(uname -s)" = Linux ] || fail "local inference needs Linux or macOS; \`make gateway\` builds without it"
[ -f "$recipe/$backend.txt" ] || fail "MLX_BACKEND is \"$backend\"; it can be cpu or cuda"

# ---- Packages

compiles() { echo "$1" | "$cxx" -std=c++20 -x c++ - "${@:2}" -o /dev/null 2>/dev/null; }
any_exists() { local path; for path in "$@"; do [ -e "$path" ] && return; done; return 1; }
# bindgen loads the library and clang's own headers; some systems have the one without the other.
libclang_exists() {
    [ -n "${LIBCLANG_PATH:-}" ] || {
        any_exists /usr/lib{,64}/{,llvm*/lib*/,*-linux-gnu/}libclang{,-[0-9]*}.so* &&
            any_exists /usr/lib{,64}/{,llvm*/lib*/}clang/*/include/stddef.h
    }
}

# Prints the Debian names of what is missing. Every build links, and the tests make Python environments; the rest serves
# only to make the prefix.
missing_packages() {
    compiles 'int main() {}' || echo g++
    python3 -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
    [ -e "$prefix/bindings.rs" ] && return
    compiles '#include <format>' -fsyntax-only || compiles '#include <fmt/format.h>' -fsyntax-only || echo libfmt-dev
    libclang_exists || echo libclang-dev
}

install_packages() {
    local packages
    packages=$(missing_packages | xargs)
    [ -n "$packages" ] || return 0
    local sudo=(sudo -n)
    [ "$(id -u)" = 0 ] && sudo=()
    local install="apt-get install -y --no-install-recommends $packages"
    if ! command -v apt-get >/dev/null; then
        fail "packages are missing; by their names in Debian: $packages"
    elif [ "$(id -u)" != 0 ] && ! sudo -n true 2>/dev/null; then
        fail "packages are missing: run \`sudo $install\`"
    fi
    say "installing $packages"
    # A machine that never fetched the package lists, or long ago, fails the first time.
    # shellcheck disable=SC2086 # a list of words
    as_root() { "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive $1 >/dev/null </dev/null; }
    as_root "$install" 2>/dev/null || { as_root "apt-get update" && as_root "$install"; } ||
        fail "packages are missing and apt could not install them: run \`$install\`"
}

# ---- The prefix

# Where cargo unpacked the mlx-sys that Cargo.lock names.
mlx_sys_folder() {
    cargo metadata --quiet --format-version 1 --filter-platform "$triple" | python3 -c '
import json, os, sys
for package in json.load(sys.stdin)["packages"]:
    if package["name"] == "mlx-sys":
        print(os.path.dirname(package["manifest_path"]))'
}

make_bindgen() {
    bindgen=$cache/tools/bindgen-$bindgen_version/bin/bindgen
    [ -x "$bindgen" ] && return
    say "building bindgen"
    CARGO_TARGET_DIR=$work/bindgen CARGO_PROFILE_DEV_DEBUG=false \
        cargo install bindgen-cli --quiet --version "$bindgen_version" --locked --debug \
        --no-default-features --features runtime --root "$cache/tools/bindgen-$bindgen_version"
}

make_prefix() {
    work=$(mktemp -d "$prefix.XXXXXX")
    trap 'rm -rf "$work"' EXIT

    local mlx_c
    mlx_c=$(mlx_sys_folder)/src/mlx-c
    local wanted
    wanted=$(sed -n 's/.*GIT_TAG v\([0-9.]*\).*/\1/p' "$mlx_c/CMakeLists.txt")
    [ "$wanted" = "$mlx_version" ] ||
        fail "mlx-sys in Cargo.lock is made for MLX $wanted, tools/mlx/$backend.txt pins $mlx_version"

    say "fetching MLX $mlx_version ($backend) and OpenBLAS"
    python3 -m venv "$work/python"
    "$work/python/bin/pip" install --quiet --disable-pip-version-check --target "$work" \
        --only-binary=:all: --no-deps --require-hashes --requirement "$recipe/$backend.txt" \
        --requirement "$recipe/openblas.txt" ||
        fail "pip can't install MLX and OpenBLAS: it takes PyPI, glibc 2.35 or later and Python 3.10 or later"

    # Most of the time goes into MLX's headers, so one file that includes all sources takes a fifth of the time. The
    # sources' names are part of error messages; without the map they would begin with a folder of whoever built this.
    say "compiling its C interface"
    mkdir "$work/lib"
    (cd "$mlx_c" && printf '#include "%s"\n' mlx/c/*.cpp) >"$work/mlxc.cpp"
    "$cxx" -std=c++20 -O2 -fPIC -DFMT_HEADER_ONLY -I"$mlx_c" -I"$work/mlx/include" -include "$recipe/prelude.h" \
        -fmacro-prefix-map="$mlx_c/=" -c "$work/mlxc.cpp" -o "$work/mlxc.o"
    ar rcs "$work/lib/libmlxc.a" "$work/mlxc.o"

    # Whatever libmlx takes from BLAS and LAPACK is passed on; sgemm has a function of its own. The last two say what was
    # picked.
    say "compiling the way to OpenBLAS"
    {
        nm -D --undefined-only "$work/mlx/lib/libmlx.so" |
            sed -nE 's/^ +U ((cblas_[a-z]+|[sdcz][a-z0-9]+_))$/FORWARD(\1)/p' | grep -vx 'FORWARD(cblas_sgemm)'
        printf 'FORWARD(%s)\n' openblas_get_corename openblas_get_config
    } >"$work/forwards.h"
    # shellcheck disable=SC2016 # $ORIGIN is for the loader
    "$cxx" -x c -O2 -fPIC -shared -I"$work" -I"$work/scipy_openblas32/include" "$recipe/blas.c" \
        -o "$work/lib/libmlxblas.so" -Wl,-z,defs,-soname,libmlxblas.so,-rpath,'$ORIGIN/../scipy_openblas32/lib' -ldl -lm

    # The options are those of mlx-sys's own build script. The types of half precision are ours, since mlx-rs wants
    # exactly these.
    make_bindgen
    say "generating the bindings"
    (cd "$mlx_c" && printf '#include "%s"\n' mlx/c/*.h) >"$work/mlxc.h"
    "$bindgen" "$work/mlxc.h" --output "$work/bindings.rs" --formatter none --rust-target 1.73 \
        --blocklist-function malloc --blocklist-function realloc --blocklist-type 'b?float16_t' \
        --raw-line '#[repr(transparent)] #[derive(Debug, Default, Copy, Clone)] pub struct float16_t(pub u16);' \
        --raw-line 'pub type bfloat16_t = u16;' \
        -- -I"$mlx_c" -include "$recipe/prelude.h"

    # Two builds may race to the same prefix; the first one wins and the other is the same.
    rm -rf "$work"/{mlxc.*,forwards.h} "$work/bindgen" "$work/python"
    chmod 755 "$work"
    mv -T "$work" "$prefix" 2>/dev/null || [ -e "$prefix/bindings.rs" ] || fail "can't write $prefix"
}

# ---- What cargo and build.rs read

cargo_config() {
    cat <<END
# Written by tools/mlx-prefix.sh, which replaces it when it is run again.

# build.rs finds the libraries by this.
[env]
MLX_MANAGER_MLX_PREFIX = { value = "$prefix", force = true }

# In place of mlx-sys's build script. OUT_DIR is where it looks for bindings.rs.
[target.$triple.mlx]
rustc-link-lib = ["static=mlxc", "dylib=mlx", "dylib=stdc++"]
rustc-link-search = ["native=$prefix/lib", "native=$prefix/mlx/lib"]
rustc-env = { OUT_DIR = "$prefix" }
END
}

write_cargo_config() {
    local file=.cargo/config.toml content
    content=$(cargo_config)
    [ "$content" = "$(cat "$file" 2>/dev/null)" ] && return
    mkdir -p .cargo
    echo "$content" >"$file"
}

mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
triple=$(rustc -vV | sed -n 's/^host: //p')
mlx_version=$(sed -n 's/^mlx-[a-z0-9-]*==\([0-9.]*\).*/\1/p' "$recipe/$backend.txt")
# Whatever the prefix is made from is in its name, so a changed recipe makes a new one.
recipe_hash=$({
    declare -f make_prefix make_bindgen
    echo "$bindgen_version"
    cat "$recipe"/{prelude.h,blas.c,openblas.txt} "$recipe/$backend.txt"
    grep -A3 '^name = "mlx-sys"' Cargo.lock || true
} | sha256sum | cut -c1-12)
prefix=$cache/mlx-$mlx_version-$backend-$(uname -m)-$recipe_hash

install_packages
[ -e "$prefix/bindings.rs" ] || make_prefix
write_cargo_config
