#!/usr/bin/env bash
# Fetches the kernels of the matrix into .cache/kernels/, adds Rust's target for arm64 and, as root, installs qemu. Quick when
# everything is there.
#
#   tests/kernels/setup.sh [NAME...]    without a name: everything
#
# Debian's packages of the kernels are unpacked, not installed: the machine keeps its own kernels. The pinned versions are
# checked by checksum; where the archive no longer has one, the newest of its series is taken, and named. Those for other
# processors come by a list of packages of our own: the machine's dpkg is not told of another architecture.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
cache="${root}/.cache/kernels"
# What the test makes slow and lossy links with.
modules=(veth sch_netem)

# Name, processor (Debian's word), package, version, checksum.
kernels=(
    "6.1 amd64 linux-image-6.1.0-50-cloud-amd64 6.1.176-1 efe19f605b6f54a8352e68d85a629abb2d30b72a085faef603a9152590baa791"
    "6.12 amd64 linux-image-6.12.117+deb12-cloud-amd64 6.12.117-1~deb12u1 5195b288dec79e2981d6b84457f38b7ce7310a2d702930ec7d07209c7f78ce37"
    "6.1-arm64 arm64 linux-image-6.1.0-50-cloud-arm64 6.1.176-1 9d41a53f5d687ae1a33cf546d0ed8be955f72e5f9e97b2b4e45e41dff3353b97"
    "6.12-arm64 arm64 linux-image-6.12.117+deb12-cloud-arm64 6.12.117-1~deb12u1 dacb299a09c53cea91e49d7e9e9dc851b9ae1f858c27bea3ebf57831d0447cab"
)

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

there() { PATH="${PATH}:/usr/sbin:/sbin" command -v "$1" >/dev/null; }

install_tools() {
    local missing=() entry
    for entry in qemu-system-x86_64:qemu-system-x86 qemu-system-aarch64:qemu-system-arm ldd:libc-bin ip:iproute2 tc:iproute2 xz:xz-utils; do
        there "${entry%%:*}" || missing+=("${entry##*:}")
    done
    [ ${#missing[@]} -eq 0 ] && return
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        fail "the kernel matrix needs ${missing[*]}: install them (on Debian, as root: apt-get install ${missing[*]})"
    fi
    say "installing ${missing[*]}"
    refresh
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends "${missing[@]}" >&2
}

# What the program in an arm64 machine is compiled with; it is linked statically, by the linker that Rust brings along.
target=aarch64-unknown-linux-musl
add_target() {
    cd "${root}"
    [ -d "$(rustc --print sysroot)/lib/rustlib/${target}/lib" ] && return
    there rustup || fail "Rust's target ${target} is missing: install it with whatever your toolchain came by"
    say "adding Rust's target ${target}"
    rustup target add "${target}" >&2
}

# use ARCHITECTURE: sets `apt` to the options with which apt's tools speak of its packages.
use() {
    apt=(-o APT::Sandbox::User=root)
    [ "$1" = "$(dpkg --print-architecture)" ] && return
    local state="${cache}/apt-$1"
    mkdir -p "${state}/lists/partial" "${state}/cache/archives/partial"
    apt+=(-o "APT::Architecture=$1" -o "APT::Architectures::=$1" -o "Dir::State::Lists=${state}/lists")
    apt+=(-o Dir::State::status=/dev/null -o "Dir::Cache=${state}/cache")
    if [ -z "$(find "${state}/lists" -maxdepth 1 -name '*_Packages*' -mmin -720)" ]; then
        apt-get "${apt[@]}" update -qq >&2
    fi
}

# download PACKAGE: into the current folder.
download() { apt-get "${apt[@]}" download -qq "$1" >&2 2>&1; }

# newest SERIES ARCHITECTURE: the newest cloud kernel of the series that the archive has, signed or not.
newest() {
    apt-cache "${apt[@]}" search --names-only "^linux-image-$1[.].*-cloud-$2(-unsigned)?$" | cut -d' ' -f1 | sort -V | tail -n 1
}

whole() {
    local module
    [ -s "$1/vmlinuz" ] && [ -s "$1/package" ] || return 1
    for module in "${modules[@]}"; do
        [ -s "$1/${module}.ko" ] || return 1
    done
}

# into_place FROM TO: by rename, so that a killed setup never leaves half a file.
into_place() {
    install -m 0644 "$1" "$2.new.$$"
    mv -f "$2.new.$$" "$2"
}

# fetch NAME ARCHITECTURE PACKAGE VERSION SHA256
fetch() {
    local name="$1" architecture="$2" package="$3" version="$4" sha256="$5" target="${cache}/$1" work image module found apt
    whole "${target}" && return
    command -v apt-get >/dev/null || fail "only Debian's and its relatives' kernels are known here: put one into ${target}/vmlinuz, with ${modules[*]}"
    work="$(mktemp -d)"
    # shellcheck disable=SC2064 # the folder of now
    trap "rm -rf '${work}'" EXIT
    use "${architecture}"
    pushd "${work}" >/dev/null
    if { download "${package}=${version}" || { refresh; download "${package}=${version}"; }; } 2>/dev/null; then
        [ "$(sha256sum ./*.deb | cut -d' ' -f1)" = "${sha256}" ] || fail "the checksum of ${package} ${version} is not the pinned one: not using it"
    else
        package="$(newest "${name%%-*}" "${architecture}")"
        [ -n "${package}" ] || fail "the archive has no cloud kernel of the series ${name%%-*} for ${architecture} (apt-get update?)"
        say "the archive no longer has $3 ${version}: taking ${package}"
        download "${package}" || fail "could not download ${package}: check the network and apt's sources"
        version="$(dpkg-deb -f ./*.deb Version)"
    fi
    dpkg-deb -x ./*.deb unpacked
    image="$(find unpacked/boot -name 'vmlinuz-*' | head -n 1)"
    [ -n "${image}" ] || fail "${package} holds no kernel"
    mkdir -p "${target}"
    for module in "${modules[@]}"; do
        found="$(find unpacked -name "${module}.ko" -o -name "${module}.ko.xz" | head -n 1)"
        [ -n "${found}" ] || fail "${package} holds no module ${module}"
        case "${found}" in *.xz) xz -d "${found}"; found="${found%.xz}" ;; esac
        into_place "${found}" "${target}/${module}.ko"
    done
    echo "${package} ${version}" >"${target}/package"
    into_place "${image}" "${target}/vmlinuz"
    popd >/dev/null
    rm -rf "${work}"
    trap - EXIT
    say "${name}: ${package} ${version}"
}

install_tools
add_target
for kernel in "${kernels[@]}"; do
    read -r name rest <<<"${kernel}"
    if [ $# -eq 0 ] || [[ " $* " == *" ${name} "* ]]; then
        # shellcheck disable=SC2086 # one word for each field
        fetch "${name}" ${rest}
    fi
done
