#!/usr/bin/env bash
# `make test` and `make lint`: tests/run.sh all|lint
#
# Every phase runs, also after one has failed (only without a build there is nothing to run); the summary at the end
# names what failed and what was left out. PRIVILEGED=0 leaves out what needs root. Logs: target/test/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

what="${1:-all}"
privileged="${PRIVILEGED:-1}"
logs=target/test
mkdir -p "${logs}"
rm -f "${logs}"/*.log "${logs}/counts"

failed_phases=()
left_out=()
timings=()
SECONDS=0

heading() { printf '\n==== %s\n' "$*"; }

# phase NAME COMMAND...: runs it into the terminal and a log.
phase() {
    local name="$1" start="${SECONDS}" status=0
    shift
    heading "${name}"
    "$@" 2>&1 | tee "${logs}/${name// /-}.log" || status=$?
    timings+=("$(printf '%4d s  %s' "$((SECONDS - start))" "${name}")")
    [ "${status}" -eq 0 ] || failed_phases+=("${name}")
    return "${status}"
}

lint() {
    phase "formatting" cargo fmt --all --check || true
    phase "clippy" cargo clippy --workspace --all-targets --locked --keep-going -- -D warnings || true
}

# One build of the whole workspace, so that everything is compiled once: cargo resolves features for the packages it
# is asked for, and would build many dependencies again for a single one. Which test programs run in which phase is
# therefore decided by the runner that cargo starts them with.
tests() {
    local triple
    triple="$(rustc -vV | sed -n 's/^host: //p')"
    triple="${triple^^}"
    env "CARGO_TARGET_${triple//-/_}_RUNNER=${PWD}/tests/runner.sh" "MESHDIFF_TEST_PHASE=$1" \
        cargo test --workspace --locked --no-fail-fast "${@:2}"
}

# Of test programs that do not run in this phase, cargo's announcement is all that there is.
tests_alone() { tests alone --tests -- --test-threads=1 --nocapture 2>&1 | grep -vE '^ +(Running|Finished) '; }

count() { cat "${logs}"/*.log 2>/dev/null | sed -nE "s/^test result: .* ([0-9]+) $1;.*/\1/p" | awk '{n += $1} END {print n + 0}'; }

summary() {
    local passed failed ignored line
    passed="$(count passed)"
    failed="$(count failed)"
    ignored="$(count ignored)"
    # A phase that failed without a failing test (formatting, the compiler, a crash) counts as one.
    for line in "${failed_phases[@]}"; do
        grep -qsE '^test result: .* [1-9][0-9]* failed;' "${logs}/${line// /-}.log" || failed=$((failed + 1))
    done
    heading "summary"
    printf '%s\n' "${timings[@]}"
    for line in "${left_out[@]}"; do printf 'LEFT OUT: %s\n' "${line}"; done
    { grep -hE '^(left out|not compared): ' "${logs}"/*.log || true; } | sort | uniq -c | sed 's/^ */LEFT OUT in tests, times /'
    [ "${ignored}" -eq 0 ] || echo "LEFT OUT: ${ignored} ignored tests"
    for line in "${failed_phases[@]}"; do printf 'FAILED: %s (see %s/)\n' "${line}" "${logs}"; done
    echo "${passed} passed, ${failed} failed" | tee "${logs}/counts"
    [ "${failed}" -eq 0 ]
}

case "${what}" in
    lint)
        lint
        summary
        exit
        ;;
    all) ;;
    *)
        echo "usage: tests/run.sh all|lint" >&2
        exit 2
        ;;
esac

root_missing=0
if [ "${privileged}" = 0 ]; then
    left_out+=("what needs root, because of PRIVILEGED=0: probes in the kernel, network namespaces, full disks, the lab, end to end")
elif [ "$(id -u)" -ne 0 ]; then
    root_missing=1
    left_out+=("what needs root: probes in the kernel, network namespaces, full disks, the lab, end to end")
fi
if [ ${#left_out[@]} -gt 0 ]; then
    printf '\n!!!! LEFT OUT: %s\n' "${left_out[0]}"
    export MESHDIFF_SKIP_PRIVILEGED=1
    phase "setup" tests/setup.sh unprivileged || { summary || true; exit 1; }
    # Virtual machines need no root, but installing qemu does.
    if ! tests/kernels/setup.sh; then
        export MESHDIFF_SKIP_QEMU=1
        left_out+=("the probes on other kernels, because qemu or the kernels are missing")
        printf '\n!!!! LEFT OUT: %s\n' "${left_out[1]}"
    fi
else
    unset MESHDIFF_SKIP_PRIVILEGED MESHDIFF_SKIP_QEMU MESHDIFF_SKIP_BROWSER MESHDIFF_SKIP_DUCKDB MESHDIFF_SKIP_CLICKHOUSE
    phase "setup" tests/setup.sh all || { summary || true; exit 1; }
fi

lint
phase "build" cargo test --workspace --locked --no-run || { summary || true; exit 1; }
phase "tests" tests together -- --show-output || true
if [ ${#left_out[@]} -eq 0 ]; then
    phase "lab and end to end" tests_alone || true
fi

# In a run that leaves nothing out, a test that left itself out has not passed.
if [ ${#left_out[@]} -eq 0 ] && grep -qhE '^left out: ' "${logs}"/*.log; then
    failed_phases+=("tests that left themselves out")
fi
if [ "${root_missing}" -eq 1 ]; then
    failed_phases+=("tests that need root")
    summary || true
    echo "make test: the tests that need root did not run: run it as root, or leave them out with 'make test PRIVILEGED=0'" >&2
    exit 1
fi
summary
