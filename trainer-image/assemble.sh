#!/bin/sh
# Builds the addon, and copies it with the libraries that it loads to /mnt. For the Dockerfile, in /opt/facetrain:
#
#   sh trainer-image/assemble.sh [--cuda] [LIBRARY...]
#
# The libraries are those of libtorch's folder that the addon is linked to, and each LIBRARY, a path in that folder: one
# that the others open by name.
set -eu

options=
if [ "${1:-}" = --cuda ]; then options=$1 && shift; fi
node hack/setup.mjs --native ${options:+"$options"}
node hack/build.mjs --addon ${options:+"$options"}
addon=native/build/facetrain.node
strip "$addon"

linked=$(ldd "$addon")
if printf '%s\n' "$linked" | grep 'not found'; then exit 1; fi
libraries=$(printf '%s\n' "$linked" | awk -v folder="$FACETRAIN_CACHE/" 'index($3, folder) == 1 { print $3 }')
libtorch=$(printf '%s\n' "$libraries" | sed -n 's|/torch/lib/libtorch_cpu\.so$||p')
for library in "$@"; do libraries="$libraries $libtorch/$library"; done
# shellcheck disable=SC2086 # a list of paths without spaces
realpath $libraries | xargs cp --parents --target-directory=/mnt
# A fifth of libtorch and of NCCL is symbols for debuggers. NVIDIA's other libraries have none.
find /mnt \( -name 'lib*torch*.so' -o -name 'libnccl.so*' \) -exec strip --strip-unneeded {} +
mkdir -p /mnt/opt/facetrain
cp --parents "$addon" /mnt/opt/facetrain
# They were unpacked in a temporary folder that only root may read.
chmod -R a+rX /mnt/opt
