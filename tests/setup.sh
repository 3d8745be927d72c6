#!/usr/bin/env bash
# Installs what a task needs, by apt-get and pip, and checks what it does not install. Quick when everything is there.
#
#   tests/setup.sh build|bpf|demo|unprivileged|all
#
# Rust is not installed: which toolchain to take, and from where, is yours to say.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# What to look for (a command, a file, or a shared library) and the Debian package that has it.
building=(cc:gcc /usr/include/stdio.h:libc6-dev git:git)
compiling_bpf=(clang:clang llvm-strip:llvm /usr/include/bpf/bpf_helpers.h:libbpf-dev)
running=(ip:iproute2 iptables-restore:iptables ps:procps setpriv:util-linux python3:python3)
testing=(/usr/bin/chromium:chromium libssl.so.3:libssl3)

case "${1:-}" in
    build) wanted=("${building[@]}") ;;
    bpf) wanted=("${compiling_bpf[@]}") ;;
    demo) wanted=("${building[@]}" "${running[@]}") ;;
    unprivileged) wanted=("${building[@]}" "${compiling_bpf[@]}" python3:python3 "${testing[@]}") ;;
    all) wanted=("${building[@]}" "${compiling_bpf[@]}" "${running[@]}" "${testing[@]}") ;;
    *) fail "usage: tests/setup.sh build|bpf|demo|unprivileged|all" ;;
esac

# iptables lives in sbin, which is not on every user's PATH.
there() {
    case "$1" in
        /*) [ -e "$1" ] ;;
        lib*.so*) PATH="${PATH}:/usr/sbin:/sbin" ldconfig -p | grep -F "$1" >/dev/null ;;
        *) PATH="${PATH}:/usr/sbin:/sbin" command -v "$1" >/dev/null ;;
    esac
}

install_packages() {
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        fail "missing: $*. Install them (on Debian, as root: apt-get install $*)"
    fi
    say "installing $*"
    # Another apt-get may be at work: wait for its lock instead of failing.
    apt-get -o DPkg::Lock::Timeout=300 update -qq >&2
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends "$@" >&2
}

missing=()
for entry in "${wanted[@]}"; do
    there "${entry%%:*}" || missing+=("${entry##*:}")
done
if [ "$1" != build ] && [ "$1" != bpf ]; then
    # Not by package: a python3 of another origin brings its own. DuckDB is kept in a venv, Envoy comes by pip.
    if there python3; then
        python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
        python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip)
    else
        missing+=(python3-venv python3-pip)
    fi
fi
[ ${#missing[@]} -eq 0 ] || install_packages "${missing[@]}"

if [ "$1" != bpf ]; then
    needed="$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "${root}/Cargo.toml")"
    command -v cargo >/dev/null && command -v rustc >/dev/null ||
        fail "Rust is missing: install a toolchain of version ${needed} or later (with rustup, or from your distribution)"
    has="$(cd "${root}" && rustc --version | cut -d' ' -f2)"
    [ "$(printf '%s\n' "${needed}" "${has%%-*}" | sort -V | head -n1)" = "${needed}" ] ||
        fail "Rust ${needed} or later is needed, and rustc says that it is ${has}: update the toolchain (rustup update stable)"
fi
if [ "$1" = all ] || [ "$1" = unprivileged ]; then
    for tool in cargo-fmt cargo-clippy; do
        command -v "${tool}" >/dev/null || fail "${tool} is missing: install the toolchain's components rustfmt and clippy"
    done
fi
# Envoy, pinned by checksum, into .cache/.
if [ "$1" = all ] || [ "$1" = demo ]; then
    "${root}/tests/lab/setup.sh" >/dev/null
fi
# A control plane for tests of a cluster, and other kernels in virtual machines.
if [ "$1" = all ]; then
    # Older Envoys, whose logs and protocols are tried as well.
    for version in 1.36.2 1.39.3; do "${root}/tests/lab/setup.sh" "${version}" >/dev/null; done
    # A cluster's control plane: four minutes on two cores the first time.
    "${root}/tests/cluster/setup.sh" >/dev/null
    "${root}/tests/kernels/setup.sh"
fi
