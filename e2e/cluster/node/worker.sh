# Starts the programs of a worker. Sourced by start.sh.
# shellcheck shell=bash
cp /opt/facetrain/ca.crt /etc/kubernetes/ca.crt
container_runtime
# Tests stop and kill workers: only pods that tolerate it are placed there.
node_agents facetrain.dev/worker= --register-with-taints=facetrain.dev/worker=:NoSchedule
