# Starts the programs of a worker. Sourced by start.sh.
# shellcheck shell=bash
cp /opt/facetrain/ca.crt /etc/kubernetes/ca.crt
container_runtime
node_agents facetrain.dev/worker=
