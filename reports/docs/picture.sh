#!/usr/bin/env bash
# `make picture`: the README's picture of a report, from the capture in tests/fixtures/. Needs Debian's chromium.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
[ -x /usr/bin/chromium ] || { echo "make picture: /usr/bin/chromium is missing (apt-get install chromium)" >&2; exit 1; }
cargo build --quiet --locked -p meshdiff
work="$(mktemp -d)"
trap 'rm -rf "${work}"' EXIT
target/debug/meshdiff report --capture tests/fixtures/bookinfo-hidden-delay/capture --output "${work}/report.html"
timeout --kill-after=5 90 /usr/bin/chromium --headless --no-sandbox --disable-gpu --no-first-run --hide-scrollbars \
    --disable-background-networking --disable-component-update --disable-sync --disable-dev-shm-usage \
    --blink-settings=preferredColorScheme=1 --virtual-time-budget=2000 --user-data-dir="${work}/profile" \
    --force-device-scale-factor=1.25 --window-size=1200,"${HEIGHT:-1500}" --screenshot="${work}/report.png" "file://${work}/report.html" 2>/dev/null
bytes="$(stat -c %s "${work}/report.png")"
[ "${bytes}" -le 400000 ] || { echo "make picture: ${bytes} bytes are too many for the repository" >&2; exit 1; }
install -m 0644 "${work}/report.png" reports/docs/report.png
echo "Wrote reports/docs/report.png: ${bytes} bytes."
