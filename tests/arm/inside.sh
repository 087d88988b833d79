#!/bin/sh
# Run a command in the arm64 root: inside.sh ROOT COMMAND…; EDGEPP_ARM_BINDS has folders to mount, as FROM:TO;
# EDGEPP_ARM_CPU the processor to emulate, such as cortex-a76 [max].
# The user namespace has an own binfmt_misc (Linux 6.7), so that the machine's own list of interpreters stays as it is.
set -eu
if [ "${1:-}" != --in-namespace ]; then
  unshare --user --mount --pid --fork --kill-child --propagation private -- "$0" --in-namespace "$@" &
  namespace=$!
  # unshare itself ignores TERM, and its child loses --kill-child with the change of its user; with the child all end.
  trap 'pkill -KILL -P $namespace || true; exit 130' INT TERM
  until [ "$(readlink /proc/$namespace/ns/user)" != "$(readlink /proc/self/ns/user)" ]; do sleep 0.05; done
  for map in uid_map gid_map; do echo 0 0 65536 >/proc/$namespace/$map; done
  wait $namespace
  exit $?
fi
until [ "$(id -u)$(id -g)" = 00 ]; do sleep 0.05; done
shift
root=$1
shift
mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
# The ELF header of a little-endian 64-bit program for aarch64 (machine 183), and a mask that ignores the OS byte.
magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
printf '%s' ":edgepp-aarch64:M::$magic:$mask:$(command -v qemu-aarch64-static):FPC" >/proc/sys/fs/binfmt_misc/register
mount --rbind /dev "$root/dev"
mount -t proc none "$root/proc"
for folder in ${EDGEPP_ARM_BINDS:-}; do
  mkdir -p "$root/${folder#*:}"
  mount --bind "${folder%%:*}" "$root/${folder#*:}"
done
exec env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 PYTHONPATH=/opt/site PYTHONDONTWRITEBYTECODE=1 \
  QEMU_CPU="${EDGEPP_ARM_CPU:-max}" chroot "$root" "$@"
