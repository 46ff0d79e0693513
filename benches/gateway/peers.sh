#!/usr/bin/env bash
# Installs the gateways that ours is measured beside, from the package registries and below a folder: peers.sh FOLDER.
# What can't be installed is said, and the benchmark leaves it out; so this never fails.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$1
mkdir -p "$folder"

missing() {
    echo "peers.sh: $1 is left out: $2" >&2
}

# Whether a peer stands there as its files ask for it.
is_current() {
    [ "$(cat "$folder/$1/installed" 2>/dev/null)" = "$2" ]
}

of() {
    cat "$@" | cksum
}

command -v nginx >/dev/null || [ -x /usr/sbin/nginx ] || missing nginx 'the command is: apt-get install nginx-light'

wanted=$(of "$here/requirements.txt")
if ! is_current litellm "$wanted"; then
    rm -rf "$folder/litellm"
    if ! python3 -m venv "$folder/litellm"; then
        missing LiteLLM "python3 can't make a venv; the command is: apt-get install python3-venv"
    elif "$folder/litellm/bin/pip" install --quiet --requirement "$here/requirements.txt"; then
        echo "$wanted" >"$folder/litellm/installed"
    else
        missing LiteLLM "pip can't install it"
        rm -rf "$folder/litellm"
    fi
fi

wanted=$(of "$here/package.json" "$here/package-lock.json")
if ! is_current portkey "$wanted"; then
    rm -rf "$folder/portkey"
    mkdir -p "$folder/portkey"
    cp "$here/package.json" "$here/package-lock.json" "$folder/portkey"
    if ! command -v npm >/dev/null; then
        missing Portkey 'there is no npm; it needs Node.js 18 or later'
        rm -rf "$folder/portkey"
    # Its own script after installation would patch what it has no patches for.
    elif (cd "$folder/portkey" && npm ci --silent --no-audit --no-fund --ignore-scripts); then
        echo "$wanted" >"$folder/portkey/installed"
    else
        missing Portkey "npm can't install it"
        rm -rf "$folder/portkey"
    fi
fi
exit 0
