# Functions of both kinds of node. Sourced. NODE, POD_CIDR, SERVER, PAUSE, NODE_GRACE_SECONDS
# and TOKEN_* come from ../cluster.ts.
# shellcheck shell=bash
programs=/opt/kubernetes
logs=/var/log/facetrain

# start NAME PROGRAM...: runs a program in the background, with its own log, and restarts it when it ends.
start() {
  local name=$1
  shift
  (
    while :; do
      "$@" >>"$logs/$name.log" 2>&1 && status=0 || status=$?
      echo "$(date -Is) $name ended with $status" >>"$logs/node.log"
      sleep 1
    done
  ) &
}

# wait_for COMMAND...: until it succeeds, for at most a minute.
wait_for() {
  for _ in $(seq 600); do
    "$@" >/dev/null 2>&1 && return
    sleep 0.1
  done
  echo "timed out after waiting for: $*" | tee -a "$logs/node.log" >&2
  exit 1
}

# kubeconfig FILE SERVER TOKEN: writes FILE.
kubeconfig() {
  cat >"$1" <<YAML
apiVersion: v1
kind: Config
current-context: facetrain
clusters:
  - name: facetrain
    cluster: {server: "$2", certificate-authority: /etc/kubernetes/ca.crt, tls-server-name: kubernetes.default.svc}
users: [{name: facetrain, user: {token: "$3"}}]
contexts: [{name: facetrain, context: {cluster: facetrain, user: facetrain}}]
YAML
}

# Makes a root for this kubelet's cgroups, and sets cgroup_root. Kubelets that share a root, also those of other
# clusters of this machine, take each other's pods for orphans and kill them.
make_cgroup_root() {
  local controller file
  if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    # cgroup v2: not below this container's cgroup, which has processes: a cgroup with processes cannot enable
    # controllers for cgroups below it.
    cgroup_root=/facetrain-$(cat /proc/sys/kernel/random/uuid)
    mkdir "/sys/fs/cgroup$cgroup_root"
    # shellcheck disable=SC2013 # one line of words
    for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
      echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control 2>/dev/null || true
      echo "+$controller" >"/sys/fs/cgroup$cgroup_root/cgroup.subtree_control" 2>/dev/null || true
    done
    return
  fi
  # cgroup v1: below this container's cgroup, with which Docker removes it.
  cgroup_root=$(sed -n 's/^[0-9]*:memory://p' /proc/self/cgroup)/kubelet
  for controller in /sys/fs/cgroup/*/; do mkdir -p "$controller$cgroup_root" 2>/dev/null || true; done
  for file in cpuset.cpus cpuset.mems; do
    cat "/sys/fs/cgroup/cpuset/$cgroup_root/../$file" >"/sys/fs/cgroup/cpuset/$cgroup_root/$file"
  done
}

container_runtime() {
  cat >/etc/cni/net.d/10-bridge.conflist <<JSON
{"cniVersion": "0.4.0", "name": "bridge", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "$POD_CIDR"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
JSON
  start containerd containerd
  wait_for ctr version
  ctr --namespace k8s.io images import "/opt/images/$PAUSE"
}

# node_agents LABELS [OPTION...]: starts the kubelet, which registers the node with these labels, and kube-proxy.
node_agents() {
  local labels=$1
  shift
  make_cgroup_root
  kubeconfig /etc/kubernetes/kubelet.conf "$SERVER" "$TOKEN_KUBELET"
  kubeconfig /etc/kubernetes/kube-proxy.conf "$SERVER" "$TOKEN_PROXY"
  echo "cgroupRoot: $cgroup_root" >>/etc/facetrain/kubelet.yaml
  start kubelet "$programs/kubelet" --config=/etc/facetrain/kubelet.yaml \
    --kubeconfig=/etc/kubernetes/kubelet.conf --hostname-override="$NODE" --node-ip="$(hostname -i)" \
    --node-labels="$labels" "$@"
  start kube-proxy "$programs/kube-proxy" --config=/etc/facetrain/kube-proxy.yaml --hostname-override="$NODE"
}
