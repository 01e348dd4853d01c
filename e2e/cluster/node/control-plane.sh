# Starts etcd, the API server, controllers, the scheduler, and the programs of a node. Sourced by start.sh.
# shellcheck shell=bash
# shellcheck disable=SC2154 # $programs is set in library.sh

# PodGroups of scheduling.k8s.io.
features='GenericWorkload=true'
state=/var/lib/facetrain
mkdir -p $state
certificate=$state/certificates/apiserver.crt
cat >$state/tokens.csv <<CSV
$TOKEN_ADMIN,admin,admin,system:masters
$TOKEN_CONTROLLER_MANAGER,system:kube-controller-manager,controller-manager
$TOKEN_SCHEDULER,system:kube-scheduler,scheduler
$TOKEN_PROXY,system:kube-proxy,proxy
$KUBELET_TOKENS
CSV
cp /opt/facetrain/service-accounts.key $state/
services=${POD_CIDR6:+fd00:96::/112,}$SERVICE_CIDR

storage=()
serve=()
if [ -n "${READABLE_ETCD:-}" ]; then
  serve=(--listen-client-urls=http://0.0.0.0:2379 --advertise-client-urls=http://127.0.0.1:2379)
  storage=(--storage-media-type=application/json)
fi
start etcd "$programs/etcd" --data-dir=/var/lib/etcd --unsafe-no-fsync "${serve[@]}"
start kube-apiserver "$programs/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 "${storage[@]}" \
  --secure-port=6443 --cert-dir=$state/certificates --advertise-address="${addresses%%,*}" \
  --service-cluster-ip-range="$services" --kubelet-preferred-address-types=InternalIP \
  --authorization-mode=Node,RBAC --token-auth-file=$state/tokens.csv --allow-privileged \
  --service-account-issuer=https://kubernetes.default.svc \
  --service-account-key-file=$state/service-accounts.key \
  --service-account-signing-key-file=$state/service-accounts.key \
  --runtime-config=api/all=true --feature-gates=$features
container_runtime

wait_for test -s $certificate
cp $certificate /etc/kubernetes/ca.crt
kubeconfig /etc/kubernetes/admin.conf "$SERVER" "$TOKEN_ADMIN"
kubeconfig /etc/kubernetes/controller-manager.conf "$SERVER" "$TOKEN_CONTROLLER_MANAGER"
kubeconfig /etc/kubernetes/scheduler.conf "$SERVER" "$TOKEN_SCHEDULER"
kubectl=("$programs/kubectl" --kubeconfig=/etc/kubernetes/admin.conf)
wait_for "${kubectl[@]}" get --raw=/readyz
start kube-controller-manager "$programs/kube-controller-manager" \
  --kubeconfig=/etc/kubernetes/controller-manager.conf --use-service-account-credentials --leader-elect=false \
  --root-ca-file=/etc/kubernetes/ca.crt --service-account-private-key-file=$state/service-accounts.key \
  --node-monitor-grace-period="${NODE_GRACE_SECONDS}s" --node-monitor-period=1s --feature-gates=$features
start kube-scheduler "$programs/kube-scheduler" --kubeconfig=/etc/kubernetes/scheduler.conf \
  --leader-elect=false --feature-gates=$features
node_agents facetrain.dev/control-plane=
"${kubectl[@]}" apply --server-side -f /etc/facetrain/coredns.yaml
