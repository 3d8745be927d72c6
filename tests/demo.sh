#!/usr/bin/env bash
# `make demo`: a mesh on this machine, a delay hidden in one place of it, and what meshdiff says of it.
#
# Without root, on a kernel that refuses the probes, or with FIXTURE=1 it reports from a capture that was recorded before.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bin=target/debug
out=target/demo
fixture=tests/fixtures/bookinfo-hidden-delay

say() { printf '%s\n' "$*"; }

report() {
    "${bin}/meshdiff" report --capture "$1"
    "${bin}/meshdiff" report --capture "$1" --output "${out}/report.html" 2>/dev/null
    "${bin}/meshdiff" report --capture "$1" --output "${out}/report.json" 2>/dev/null
}

# The place with the largest share, in words.
said() {
    python3 - "${out}/report.json" <<'PY'
import json, sys
place = json.load(open(sys.argv[1]))["verdict"]["places"][0]
where = {"network": "on the network to"}.get(place["kind"], f"in the {place['kind']} of")
print(f"{place['meanNs'] / 1e6:.1f} ms of a request on average, more than anywhere else, {where} {place['workload']['workload']}")
PY
}

from_fixture() {
    say "$1"
    say "So this reports from ${fixture}, recorded from the lab on another day. No mesh runs here now."
    say ""
    tests/setup.sh build
    cargo build --quiet --locked -p meshdiff
    rm -rf "${out}"
    mkdir -p "${out}"
    report "${fixture}/capture"
    say ""
    say "The whole report: ${PWD}/${out}/report.html"
    say "meshdiff said: $(said)."
    say "Hidden was:    $(cat "${fixture}/hidden.txt")."
}

if [ "${FIXTURE:-0}" = 1 ]; then
    from_fixture "FIXTURE=1: no lab is brought up."
    exit
fi
if [ "$(id -u)" -ne 0 ]; then
    from_fixture "You are not root, which the lab (network namespaces) and the probes (eBPF) need."
    exit
fi

tests/setup.sh demo
cargo build --quiet --locked --workspace --bins
rm -rf "${out}"
mkdir -p "${out}"

# Does this machine take the probes? If not, the reasons go to the terminal.
if ! "${bin}/meshdiff" check --als-listen 127.0.0.1:0 >"${out}/check.txt" 2>&1; then
    cat "${out}/check.txt"
    from_fixture "This machine does not take the probes (above is why)."
    exit
fi

# WHAT IT IS | lab options | load options
places=(
    "8 ms in the application of details-v1||--delays details-v1.app=8ms"
    "8 ms in the application of productpage-v1||--delays productpage-v1.app=8ms"
    "24 ms in the application of reviews-v2, which answers one request in three||--delays reviews-v2.app=24ms"
    "12 ms in the application of ratings-v1, which two requests in three reach||--delays ratings-v1.app=12ms"
    "8 ms in the sidecar of details-v1, for what comes in|--ext-authz|--delays details-v1.sidecar_in=8ms"
    "12 ms in the sidecar of ratings-v1, for what comes in|--ext-authz|--delays ratings-v1.sidecar_in=12ms"
    "8 ms in the sidecar of productpage-v1, for what comes in|--ext-authz|--delays productpage-v1.sidecar_in=8ms"
    "4 ms each way on the network between productpage-v1 and details-v1|--net-delay productpage-v1:details-v1=4ms|"
    "4 ms each way on the network between loadgen and productpage-v1|--net-delay loadgen:productpage-v1=4ms|"
)
hidden="${places[${DEMO_PLACE:-$((RANDOM % ${#places[@]}))}]}"
IFS='|' read -r words up load <<<"${hidden}"

say "A mesh of seven pods with real Envoy sidecars comes up on this machine, something in it is made slow, and"
say "40 requests a second go through it for 10 s."
say ""
tests/scenario.sh demo "${out}/capture" "${up}" "--rate 40 --duration 10s ${load}" >"${out}/load.json"
say ""
report "${out}/capture"
say ""
say "The whole report: ${PWD}/${out}/report.html (the capture is beside it)"
say "meshdiff said: $(said)."
say "Hidden was:    ${words}."
