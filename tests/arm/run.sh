#!/bin/sh
# The exact tests of both backends under emulated aarch64: `make arm`. Needs root on Linux 6.7 or newer, and minutes.
# The root is unpacked, not configured (no program of it runs as itself): .arm/root is Debian, .arm/site the wheels.
set -eu
cd "$(dirname "$0")/../.."
here=$PWD
python=$here/.venv/bin/python
result=docs/arm.txt
if [ "$(uname -s)" != Linux ] || [ "$(id -u)" != 0 ]; then
  echo "make arm needs Linux and root: it mounts a Debian root for arm64" >&2
  exit 2
fi
tests/install_packages.sh debootstrap qemu-aarch64-static:qemu-user-static
if [ ! -e .arm/root/.ready ]; then
  echo "unpacking Debian 12 for arm64 into .arm/root"
  rm -rf .arm/root && mkdir -p .arm
  debootstrap --foreign --arch=arm64 --variant=minbase --include=python3 bookworm .arm/root http://deb.debian.org/debian \
    >.arm/debootstrap.log 2>&1
  for package in .arm/root/var/cache/apt/archives/*.deb; do dpkg-deb -x "$package" .arm/root; done
  touch .arm/root/.ready
fi
if [ ! -e .arm/site/.ready ] || [ pyproject.toml -nt .arm/site/.ready ]; then
  echo "fetching the wheels for aarch64 into .arm/site"
  "$python" - <<'PYTHON' >.arm/requirements.txt
import tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
wanted = {"hypothesis", "pytest", "pytest-timeout", "pytest-xdist"}
print(*project["dependencies"], *(one for one in project["optional-dependencies"]["dev"] if one.split(">")[0] in wanted), sep="\n")
PYTHON
  platforms=
  for glibc in 35 34 31 28 27 26 24 17; do platforms="$platforms --platform manylinux_2_${glibc}_aarch64"; done
  # shellcheck disable=SC2086
  "$python" -m pip --disable-pip-version-check install --quiet --upgrade --target .arm/site --python-version 3.11 \
    --implementation cp --abi cp311 --abi abi3 --abi none $platforms --only-binary=:all: \
    --requirement .arm/requirements.txt 2>.arm/pip.log || { tail -5 .arm/pip.log >&2; exit 1; }
  touch .arm/site/.ready
fi
echo "running the exact tests under emulation"
began=$(date +%s)
commit=$(git describe --always --dirty --abbrev=12 --exclude='*')
status=0
if [ $# != 0 ]; then result=.arm/some.txt; else # what is kept is the whole run
  set -- tests/loopback/test_exact.py tests/backend/test_onnx_stage.py tests/backend/test_mlx_stage.py
fi
EDGEPP_ARM_BINDS="$here/.arm/site:opt/site $here:opt/edgepp" tests/arm/inside.sh "$here/.arm/root" /bin/sh -c '
  cd /opt/edgepp && mkdir -p /tmp && python3 -c "
import platform, mlx.core, onnxruntime, numpy
print(platform.machine(), \"Python\", platform.python_version(), \"mlx\", mlx.core.__version__,
      \"onnxruntime\", onnxruntime.__version__, \"numpy\", numpy.__version__)" 2>/dev/null &&
  exec python3 -m pytest -p no:cacheprovider -q --tb=line --timeout 3600 "$@" 2>&1' sh "$@" \
  >.arm/tests.log || status=$?
{
  echo "Exact tests of both backends under emulated aarch64 (make arm), $(date -u +%Y-%m-%d), commit $commit"
  echo "$(qemu-aarch64-static --version | head -1), -cpu max; host $(uname -m), Linux $(uname -r | cut -d- -f1); $(($(date +%s) - began)) s"
  echo "tests: $*"
  grep -v cpuinfo .arm/tests.log | grep -v "cpuid_info" || true
} >"$result"
cat "$result"
exit $status
