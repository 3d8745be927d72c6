#!/bin/sh
# Installs chdb, ClickHouse's engine as a Python module, as a pinned wheel into a venv under .cache at the repository's root, and prints
# that venv's python. Quick when it is there.
set -eu
version=26.9.0
root=$(cd "$(dirname "$0")/../.." && pwd)
venv="$root/.cache/chdb-$version"
if ! [ -e "$venv/ready" ]; then
    if ! command -v python3 >/dev/null; then
        echo "python3 is missing: install it (apt-get install python3-venv), or set MESHDIFF_SKIP_CLICKHOUSE=1" >&2
        exit 1
    fi
    # One at a time: it is large. What is being made has a name of its own until it is complete.
    mkdir -p "$root/.cache"
    exec 9>"$root/.cache/chdb.lock"
    flock 9
    if ! [ -e "$venv/ready" ]; then
        new="$venv.making"
        rm -rf "$new" "$venv"
        python3 -m venv --copies "$new" ||
            { echo "python3 cannot make a venv: install python3-venv, or set MESHDIFF_SKIP_CLICKHOUSE=1" >&2; exit 1; }
        # The engine alone: what turns results into data frames is not needed.
        "$new/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: --no-deps "chdb-core==$version" >&2 ||
            { echo "pip cannot install chdb-core $version: is there a network? MESHDIFF_SKIP_CLICKHOUSE=1 leaves this out" >&2; exit 1; }
        : >"$new/ready"
        mv -T "$new" "$venv"
    fi
fi
echo "$venv/bin/python"
