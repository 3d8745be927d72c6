#!/usr/bin/env bash
# Records a lab of its own under traffic: tests/scenario.sh NAME CAPTURE 'UP OPTIONS' 'LOAD OPTIONS'
#
# Prints the load generator's report (JSON) on stdout. The lab is gone afterwards, whatever happens. Needs root and the
# binaries in target/debug/ (or MESHDIFF_BIN_DIR).
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
bin="${MESHDIFF_BIN_DIR:-${root}/target/debug}"
name="$1" capture="$2"
read -ra up <<<"$3"
read -ra load <<<"$4"

say() { printf '%s: %s\n' "${name}" "$*" >&2; }

# Two runs under one name would take down each other's lab.
exec 9>"/run/lock/meshdiff-scenario-${name}"
flock -n 9 || { say "another run is at work under this name"; exit 1; }

recorder=
cleanup() {
    trap - EXIT INT TERM
    if [ -n "${recorder}" ] && kill -0 "${recorder}" 2>/dev/null; then
        kill -KILL "${recorder}" && wait "${recorder}" || true
    fi
    "${bin}/meshdiff-lab" down --name "${name}" 9>&- >&2 || true
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# A subnet and a port that nobody has.
for third in $(shuf -i 0-255); do
    ip -4 route show | grep -q "10\.89\.${third}\." || break
done
subnet="10.89.${third}"
port="$(python3 -c 'import socket; s = socket.socket(); s.bind(("0.0.0.0", 0)); print(s.getsockname()[1])')"

# The lab's long-lived processes must not hold the lock.
"${bin}/meshdiff-lab" up --name "${name}" --subnet "${subnet}.0/24" --als "${subnet}.1:${port}" "${up[@]}" 9>&- >&2
# The access logs of the requests with which the lab was checked leave the sidecars within a second, to nobody.
sleep 2

# Only this lab: another one may be on the machine.
only=()
while read -r netns; do only+=(--netns "${netns}"); done < <(
    "${bin}/meshdiff-lab" status --name "${name}" --json |
        python3 -c 'import json, sys; [print(pod["netns"]) for pod in json.load(sys.stdin)["pods"]]'
)
"${bin}/meshdiff" record --quiet --als-listen "${subnet}.1:${port}" --output "${capture}" "${only[@]}" 9>&- &
recorder=$!
# meta.json is written once the probes are attached and the access log endpoint listens.
for _ in $(seq 200); do
    [ -e "${capture}/meta.json" ] && break
    kill -0 "${recorder}" 2>/dev/null || { recorder=; say "meshdiff record ended early"; exit 1; }
    sleep 0.05
done
"${bin}/meshdiff-lab" load --name "${name}" "${load[@]}" 9>&-
sleep 1
kill -INT "${recorder}"
wait "${recorder}" || { recorder=; say "meshdiff record failed"; exit 1; }
recorder=
