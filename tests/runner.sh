#!/bin/sh
# What cargo starts test programs with (tests/run.sh): runs those of the phase at hand and passes over the others.
#
# `alone` is for programs that bring labs up and measure times: nothing else may run beside them.
phase=together
case "${CARGO_PKG_NAME:-}/${1##*/}" in
    # The library's own tests need no lab.
    meshdiff-e2e/meshdiff_e2e-*) ;;
    meshdiff-e2e/* | meshdiff-lab/privileged-*) phase=alone ;;
    # An API server and etcd beside everything else would make both late.
    meshdiff-cluster/cluster-*) phase=alone ;;
    # Ten thousand connections a second take the machine for themselves.
    meshdiff-probes/churn-*) phase=alone ;;
esac
[ "${phase}" = "${MESHDIFF_TEST_PHASE:-together}" ] || exit 0
[ "${phase}" = together ] || echo "---- ${CARGO_PKG_NAME}: ${1##*/}"
exec "$@"
