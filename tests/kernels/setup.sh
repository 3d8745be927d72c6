#!/usr/bin/env bash
# Fetches the kernels of the matrix into .cache/kernels/ and, as root, installs qemu. Quick when everything is there.
#
# Debian's packages of the kernels are unpacked, not installed: the machine keeps its own kernels. The pinned versions are
# checked by checksum; where the archive no longer has one, the newest of its series is taken, and named.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
cache="${root}/.cache/kernels"

say() { printf 'kernels setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

refreshed=0
refresh() {
    [ "${refreshed}" -eq 0 ] || return 0
    refreshed=1
    [ "$(id -u)" -eq 0 ] || return 0
    # Another apt-get may be at work: wait for its lock instead of failing.
    apt-get -o DPkg::Lock::Timeout=300 update -qq >&2
}

install_qemu() {
    local missing=()
    PATH="${PATH}:/usr/sbin:/sbin" command -v qemu-system-x86_64 >/dev/null || missing+=(qemu-system-x86)
    command -v ldd >/dev/null || missing+=(libc-bin)
    [ ${#missing[@]} -eq 0 ] && return
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        fail "the kernel matrix needs ${missing[*]}: install them (on Debian, as root: apt-get install ${missing[*]})"
    fi
    say "installing ${missing[*]}"
    refresh
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends "${missing[@]}" >&2
}

# download PACKAGE: into the current folder.
download() { apt-get -o APT::Sandbox::User=root download -qq "$1" >&2 2>&1; }

# newest SERIES: the newest cloud kernel of the series that the archive has, signed or not.
newest() {
    apt-cache search --names-only "^linux-image-$1[.].*-cloud-amd64(-unsigned)?$" | cut -d' ' -f1 | sort -V | tail -n 1
}

# fetch SERIES PACKAGE VERSION SHA256
fetch() {
    local series="$1" package="$2" version="$3" sha256="$4" target="${cache}/$1" work image
    if [ -s "${target}/vmlinuz" ] && [ -s "${target}/package" ]; then
        return
    fi
    command -v apt-get >/dev/null || fail "only Debian's and its relatives' kernels are known here: put one into ${target}/vmlinuz"
    work="$(mktemp -d)"
    # shellcheck disable=SC2064 # the folder of now
    trap "rm -rf '${work}'" EXIT
    pushd "${work}" >/dev/null
    if { download "${package}=${version}" || { refresh; download "${package}=${version}"; }; } 2>/dev/null; then
        [ "$(sha256sum ./*.deb | cut -d' ' -f1)" = "${sha256}" ] || fail "the checksum of ${package} ${version} is not the pinned one: not using it"
    else
        package="$(newest "${series}")"
        [ -n "${package}" ] || fail "the archive has no cloud kernel of the series ${series} (apt-get update?)"
        say "the archive no longer has ${2} ${version}: taking ${package}"
        download "${package}" || fail "could not download ${package}: check the network and apt's sources"
        version="$(dpkg-deb -f ./*.deb Version)"
    fi
    dpkg-deb -x ./*.deb unpacked
    image="$(find unpacked/boot -name 'vmlinuz-*' | head -n 1)"
    [ -n "${image}" ] || fail "${package} holds no kernel"
    mkdir -p "${target}"
    echo "${package} ${version}" >"${target}/package"
    # Into place by rename, so that a killed setup never leaves half a kernel.
    install -m 0644 "${image}" "${target}/vmlinuz.new.$$"
    mv -f "${target}/vmlinuz.new.$$" "${target}/vmlinuz"
    popd >/dev/null
    rm -rf "${work}"
    trap - EXIT
    say "${series}: ${package} ${version}"
}

install_qemu
fetch 6.1 linux-image-6.1.0-50-cloud-amd64 6.1.176-1 efe19f605b6f54a8352e68d85a629abb2d30b72a085faef603a9152590baa791
fetch 6.12 linux-image-6.12.117+deb12-cloud-amd64 6.12.117-1~deb12u1 5195b288dec79e2981d6b84457f38b7ce7310a2d702930ec7d07209c7f78ce37
