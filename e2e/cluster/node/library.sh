# Functions of both kinds of node. Sourced. NODE, POD_CIDR, SERVICE_CIDR, SERVER, PAUSE, NODE_GRACE_SECONDS
# and TOKEN_* come from ../cluster.ts; POD_CIDR6 as well, if IPv6 is the first family of the cluster, and READABLE_ETCD.
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

# The addresses of this node, those of the cluster's first family first.
addresses=$(hostname -i)
if [ -n "${POD_CIDR6:-}" ]; then
  # No other node of the cluster has this last number in its IPv4 address.
  address6=fd00:fa::${addresses##*.}
  addresses=$address6,$addresses
fi

# Docker's network has IPv4 alone.
enable_ipv6() {
  sysctl -qw net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0 net.ipv6.conf.all.forwarding=1
  ip -6 address add "$address6/64" dev eth0 nodad
  sed -i "s#^clusterCIDR: .*#&,$POD_CIDR6#" /etc/facetrain/kube-proxy.yaml
}

container_runtime() {
  # shellcheck disable=SC2153 # POD_CIDR is not a misspelt POD_CIDR6
  local ranges='[{"subnet": "'$POD_CIDR'"}]' routes='{"dst": "0.0.0.0/0"}'
  if [ -n "${POD_CIDR6:-}" ]; then
    ranges+=', [{"subnet": "'$POD_CIDR6'"}]'
    routes+=', {"dst": "::/0"}'
  fi
  cat >/etc/cni/net.d/10-bridge.conflist <<JSON
{"cniVersion": "0.4.0", "name": "bridge", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [$ranges], "routes": [$routes]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
JSON
  start containerd containerd
  wait_for ctr version
  ctr --namespace k8s.io images import "/opt/images/$PAUSE"
}

# reject_services_outside: packets to a service whose address kube-proxy's rules did not replace, as while it exchanges
# them, would leave the cluster, and the network of this machine may answer for any address.
reject_services_outside() {
  local chain
  for chain in FORWARD OUTPUT; do iptables --append $chain --destination "$SERVICE_CIDR" --jump REJECT; done
}

# node_agents LABELS [OPTION...]: starts the kubelet, which registers the node with these labels, and kube-proxy.
node_agents() {
  local labels=$1
  shift
  make_cgroup_root
  reject_services_outside
  kubeconfig /etc/kubernetes/kubelet.conf "$SERVER" "$TOKEN_KUBELET"
  kubeconfig /etc/kubernetes/kube-proxy.conf "$SERVER" "$TOKEN_PROXY"
  echo "cgroupRoot: $cgroup_root" >>/etc/facetrain/kubelet.yaml
  start kubelet "$programs/kubelet" --config=/etc/facetrain/kubelet.yaml \
    --kubeconfig=/etc/kubernetes/kubelet.conf --hostname-override="$NODE" --node-ip="$addresses" \
    --node-labels="$labels" "$@"
  start kube-proxy "$programs/kube-proxy" --config=/etc/facetrain/kube-proxy.yaml --hostname-override="$NODE"
}
