#!/bin/sh
# Opens the capture in $1 with DuckDB and prints what a few queries find, one line each.
# DuckDB comes as a pinned wheel into a venv under .cache at the repository's root.
set -eu
version=2.0.0
capture=$1
root=$(cd "$(dirname "$0")/../../.." && pwd)
venv="$root/.cache/duckdb-$version"
if ! [ -e "$venv/ready" ]; then
    if ! command -v python3 >/dev/null; then
        echo "python3 is missing: install it (apt-get install python3-venv), or set MESHDIFF_SKIP_DUCKDB=1" >&2
        exit 1
    fi
    # A name of its own until it is complete, so that two runs at once do not meet.
    new="$venv.$$"
    trap 'rm -rf "$new"' EXIT
    mkdir -p "$root/.cache"
    python3 -m venv --copies "$new" ||
        { echo "python3 cannot make a venv: install python3-venv, or set MESHDIFF_SKIP_DUCKDB=1" >&2; exit 1; }
    "$new/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: "duckdb==$version" >&2 ||
        { echo "pip cannot install duckdb $version: is there a network? MESHDIFF_SKIP_DUCKDB=1 leaves this out" >&2; exit 1; }
    : >"$new/ready"
    mv -T "$new" "$venv" 2>/dev/null || [ -e "$venv/ready" ]
fi
exec "$venv/bin/python" "$(dirname "$0")/queries.py" "$capture"
