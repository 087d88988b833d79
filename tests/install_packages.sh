#!/bin/sh
# Install what some tests use besides Python: network tools, a browser, npm. Without them these tests are skipped.
[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || exit 0
missing=
command -v ip >/dev/null || missing="$missing iproute2"
command -v npm >/dev/null || missing="$missing nodejs npm"
command -v chromium >/dev/null || command -v google-chrome >/dev/null || missing="$missing chromium"
[ -z "$missing" ] && exit 0
echo "installing for the tests:$missing"
export DEBIAN_FRONTEND=noninteractive
{ apt-get update && apt-get install --yes --no-install-recommends $missing; } >/dev/null 2>&1 ||
  echo "not installed:$missing; the tests that use them are skipped" >&2
