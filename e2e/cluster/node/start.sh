#!/bin/bash
# A node of the kind that ROLE says, until it is stopped.
set -eu
. library.sh
mkdir -p "$logs" /etc/kubernetes /etc/cni/net.d
# Mounts of pods must not leave this container, and the kubelet's must be seen by containerd.
mount --make-rshared /
trap 'exit 0' TERM INT
. "$ROLE.sh"
echo "the node has started"
while :; do wait -n || true; done
