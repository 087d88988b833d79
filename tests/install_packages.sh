#!/bin/sh
# Install what some tests use besides Python: network tools, a browser, npm, shells, Prometheus, an SSH server. Without them
# these tests are skipped. With arguments, install these instead, each as PROGRAM or PROGRAM:PACKAGE.
[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || exit 0
missing=
if [ $# != 0 ]; then
  for wanted; do command -v "${wanted%%:*}" >/dev/null || missing="$missing ${wanted#*:}"; done
else
  command -v ip >/dev/null || missing="$missing iproute2"
  command -v npm >/dev/null || missing="$missing nodejs npm"
  command -v chromium >/dev/null || command -v google-chrome >/dev/null || missing="$missing chromium"
  for name in shellcheck zsh fish; do command -v "$name" >/dev/null || missing="$missing $name"; done
  # Where systemd runs, these packages would start servers that listen to the network.
  if [ ! -d /run/systemd/system ]; then
    [ -x /usr/sbin/sshd ] || missing="$missing openssh-server"
    command -v prometheus >/dev/null || missing="$missing prometheus"
  fi
fi
[ -z "$missing" ] && exit 0
echo "installing for the tests:$missing"
export DEBIAN_FRONTEND=noninteractive
{ apt-get update && apt-get install --yes --no-install-recommends $missing; } >/dev/null 2>&1 ||
  echo "not installed:$missing; the tests that use them are skipped" >&2
