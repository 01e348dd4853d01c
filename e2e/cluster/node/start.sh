#!/bin/bash
# Runs a node until the container is stopped. ROLE: control-plane or worker.
set -eu
. library.sh
mkdir -p "$logs" /etc/kubernetes /etc/cni/net.d
# Shared within this container, so that containerd sees the kubelet's mounts. They do not reach the host.
mount --make-rshared /
trap 'exit 0' TERM INT
[ -z "${POD_CIDR6:-}" ] || enable_ipv6
# shellcheck source=control-plane.sh # or worker.sh
. "$ROLE.sh"
echo "the node has started"
while :; do wait -n || true; done
