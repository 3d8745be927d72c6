#!/usr/bin/env bash
# `make bench`: what the probes and the recorder cost. Each figure is a ratio measured side by side in one run,
# interleaved, with an A/A control. Needs root and an otherwise idle machine.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo build --locked -p meshdiff -p meshdiff-lab -p meshdiff-e2e
cargo build --locked -p meshdiff-probes --example discard --example overhead --example assembly
cargo build --locked -p meshdiff-als --example throughput --example streams
cargo build --locked -p meshdiff-capture --example disk --example mesh
tests/lab/setup.sh >/dev/null

echo "== One exchange on one thread (two sends, two readies, two recvs), probes attached against not"
target/debug/examples/overhead

echo "== Records into messages and metrics, in user space on one core"
target/debug/examples/assembly

echo "== Ten thousand connections opened and closed in a second, for ${MESHDIFF_CHURN_SECONDS:=30} s"
MESHDIFF_CHURN_SECONDS="${MESHDIFF_CHURN_SECONDS}" cargo test --locked -p meshdiff-probes --test churn -- --test-threads=1 --nocapture

echo "== Access logs: decoding, and receivers that store nothing or columns, ns of CPU an entry"
target/debug/examples/throughput "${ALS_SECONDS:-3}"

echo "== Access logs: 5,000 streams of 100 entries a second for 60 s, into a capture"
target/debug/examples/streams 5000 60 || echo "(entries were lost: the two processes together need more than this machine has)"

echo "== Access logs: bytes on disk, a synthetic million of requests"
target/debug/examples/disk 1000000

echo "== A report over so many requests of one node: seconds and memory"
mesh=$(mktemp -d)
trap 'rm -rf "$mesh"' EXIT
for requests in ${REPORT_REQUESTS:-100000 1000000}; do
	target/debug/examples/mesh "$requests" "$mesh/$requests" 1
	python3 - "$mesh/$requests/node-a" <<-'PYTHON'
	import resource, subprocess, sys, time
	began = time.monotonic()
	subprocess.run(["target/debug/meshdiff", "report", "--format", "json", "--capture", sys.argv[1]], check=True, stdout=subprocess.DEVNULL)
	took = time.monotonic() - began
	used = resource.getrusage(resource.RUSAGE_CHILDREN)
	print(f"{took:.1f} s, {used.ru_utime + used.ru_stime:.1f} s of CPU, at most {used.ru_maxrss // 1024} MiB resident")
	PYTHON
done

echo "== Throughput of the lab at saturation, 64 connections"
target/debug/overhead "${ROUNDS:-9}"
