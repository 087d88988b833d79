#!/bin/sh
# Install edgepp into a folder of its own, or remove it again. `sh install.sh --help` says how.
set -eu

UV_VERSION=0.12.21
PYTHONS='>=3.11,<3.14'
# What is installed without --from, outside of a clone: a requirement such as edgepp==0.1.0, once there is a release.
RELEASE=

usage() {
  cat <<'END'
Install edgepp into a folder of its own, or remove it again.

    sh install.sh [--from SOURCE [--sha256 HEX]] [--dry-run]
    sh install.sh --uninstall [--purge] [--dry-run]

  --from SOURCE   a wheel, a folder with the source, or the address of a wheel  [default: the clone with this script]
  --sha256 HEX    what the wheel must be; an address needs it, or ends in #sha256=HEX
  --python PATH   the Python to use  [default: one of 3.11 to 3.13 that is here, else uv brings one]
  --dir DIR       where to install  [default: ~/.local/share/edgepp-install]
  --bin DIR       where to link the command  [default: ~/.local/bin]
  --uninstall     remove the program, its service and its link; models, keys and cluster stay
  --purge         with --uninstall: remove these, too
  --dry-run       say what would be done, and do nothing

Needs macOS 14 on Apple silicon, or Linux with glibc 2.35; no root. Where no Python fits, uv (of Astral) is downloaded,
checked against a SHA-256 in this script, and brings one into the same folder. EDGEPP_UV_URL and EDGEPP_UV_SHA256 name
another place for uv's archive; uv's own variables, such as UV_INDEX_URL, and pip's say where packages come from.
END
}

say() { printf '%s\n' "$*"; }

fail() { # message, next step
  printf 'error: %s\n' "$1" >&2
  [ $# -lt 2 ] || printf '  try: %s\n' "$2" >&2
  exit 1
}

run() { # a command, or in a dry run its words
  if [ -n "$dry_run" ]; then say "would run: $*"; else "$@"; fi
}

have() { command -v "$1" >/dev/null 2>&1; }

value() { # option, number of words left
  [ "$2" -ge 2 ] || fail "$1 needs a value" "sh install.sh --help"
}

parse() {
  dry_run='' uninstall='' purge='' source='' sha256='' python=''
  home=${HOME:?is not set}
  dir=$home/.local/share/edgepp-install bin=$home/.local/bin
  while [ $# -gt 0 ]; do
    case $1 in
      --from) value "$1" $#; source=$2; shift ;;
      --sha256) value "$1" $#; sha256=$2; shift ;;
      --python) value "$1" $#; python=$2; shift ;;
      --dir) value "$1" $#; dir=$2; shift ;;
      --bin) value "$1" $#; bin=$2; shift ;;
      --dry-run) dry_run=1 ;;
      --uninstall) uninstall=1 ;;
      --purge) purge=1 ;;
      -h | --help) usage; exit 0 ;;
      *) fail "unknown option $1" "sh install.sh --help" ;;
    esac
    shift
  done
  case $dir in /*) ;; *) dir=$(pwd)/$dir ;; esac
  case $bin in /*) ;; *) bin=$(pwd)/$bin ;; esac
  made=$dir/made-by-install.sh # the mark of our folder: the folders around it that were made, the innermost first
  link=$bin/edgepp
}

check_system() {
  system=$(uname -s) machine=$(uname -m)
  case $system/$machine in
    Darwin/arm64) target=aarch64-apple-darwin ;;
    Darwin/*) fail "edgepp needs a Mac with Apple silicon: MLX has no build for $machine" ;;
    Linux/x86_64 | Linux/amd64) target=x86_64-unknown-linux-gnu ;;
    Linux/aarch64 | Linux/arm64) target=aarch64-unknown-linux-gnu ;;
    *) fail "edgepp runs on macOS and Linux, on arm64 and x86-64; this is $system on $machine" ;;
  esac
  if [ "$system" = Linux ] && ! getconf GNU_LIBC_VERSION >/dev/null 2>&1; then
    fail "this Linux has no glibc, for which the packages of edgepp are built" "use Debian 12, Ubuntu 22.04 or newer"
  fi
}

digest() {
  if have sha256sum; then sha256sum "$1"; elif have shasum; then shasum -a 256 "$1"; else
    fail "neither sha256sum nor shasum is here, so downloads cannot be checked" "install coreutils"
  fi | cut -d' ' -f1
}

verify() { # file, digest
  found=$(digest "$1")
  [ "$found" = "$2" ] || fail "$(basename "$1") is not what was meant: its SHA-256 is $found, not $2" "try again later"
}

download() { # address, file, digest
  say "downloading $1"
  if [ -n "$dry_run" ]; then return; fi
  if have curl; then curl -fsSL --retry 3 -o "$2" "$1"; elif have wget; then wget -q -O "$2" "$1"; else
    fail "neither curl nor wget is here" "install curl and ca-certificates"
  fi || fail "cannot download $1" "check the network, and try again"
  verify "$2" "$3"
}

make_folder() { # with its parents, which are noted for the removal
  [ -d "$1" ] && return
  make_folder "$(dirname "$1")"
  run mkdir "$1"
  if [ "$1" != "$dir" ]; then folders="$1
$folders"; fi
}

find_source() {
  here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
  if [ -z "$source" ] && [ -f "$here/pyproject.toml" ] && [ -d "$here/edgepp" ]; then source=$here; fi
  if [ -z "$source" ] && [ -z "$RELEASE" ]; then
    fail "there is no release of edgepp yet" "clone it and run install.sh there, or name a wheel: --from WHEEL"
  fi
  package=${source:-$RELEASE}
  case $package in
    http://* | https://*)
      case $package in *'#sha256='*) sha256=${package##*#sha256=} package=${package%%#*} ;; esac
      [ -n "$sha256" ] || fail "the wheel at $package could be anything" "say what it must be: --sha256 HEX"
      ;;
    *.whl)
      [ -f "$package" ] || fail "there is no wheel $package"
      package=$(CDPATH='' cd -- "$(dirname -- "$package")" && pwd)/$(basename -- "$package")
      if [ -n "$sha256" ]; then verify "$package" "$sha256"; fi
      ;;
    *) if [ -n "$source" ] && [ ! -d "$package" ]; then fail "there is no wheel or folder $package"; fi ;;
  esac
}

fits() { # a Python with all that a virtual environment needs
  "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

find_python() {
  if [ -n "$python" ]; then
    fits "$python" || fail "$python is no Python 3.11 to 3.13 with venv" "leave --python out: uv brings one"
    return
  fi
  for name in python3.13 python3.12 python3.11 python3; do
    found=$(command -v "$name" 2>/dev/null) || continue
    if [ "$found" = /usr/bin/python3 ] && [ "$system" = Darwin ] && ! xcode-select -p >/dev/null 2>&1; then
      continue # it would only offer to install the developer tools
    fi
    if fits "$found"; then python=$found; return; fi
  done
}

uv_digest() { # of the release's archive
  case $target in
    aarch64-apple-darwin) echo b88bda573e566ef9bced66b155fe0408626fbbc053aee1c30ba686f0728c9447 ;;
    x86_64-unknown-linux-gnu) echo 23f02075b652bb1df64178cfae41b5caf160822e720e2663568f3f5d63bc52c0 ;;
    aarch64-unknown-linux-gnu) echo 030b69227b40af8c1981b7301793dc66e71ed3c796ea8688209dd268bd91ec51 ;;
  esac
}

bring_uv() {
  uv=$(command -v uv 2>/dev/null) && return
  uv_url=https://github.com/astral-sh/uv/releases/download/$UV_VERSION/uv-$target.tar.gz
  uv_sha256=$(uv_digest)
  if [ -n "${EDGEPP_UV_URL:-}" ]; then
    uv_url=$EDGEPP_UV_URL
    uv_sha256=${EDGEPP_UV_SHA256:?is needed with EDGEPP_UV_URL}
  fi
  download "$uv_url" "$dir/uv.tar.gz" "$uv_sha256"
  run mkdir "$dir/uv"
  run tar -xzf "$dir/uv.tar.gz" -C "$dir/uv" --strip-components=1
  run rm "$dir/uv.tar.gz"
  uv=$dir/uv/uv
}

fetch_wheel() {
  case $package in
    http://* | https://*)
      name=$(basename "${package%%\?*}")
      download "$package" "$dir/$name" "$sha256"
      wheel=$dir/$name
      ;;
    *) wheel=$package ;;
  esac
}

install_with_python() {
  say "using $python"
  run "$python" -m venv "$dir/venv"
  PIP_CACHE_DIR=$dir/cache PIP_DISABLE_PIP_VERSION_CHECK=1
  export PIP_CACHE_DIR PIP_DISABLE_PIP_VERSION_CHECK
  run "$dir/venv/bin/python" -m pip install --quiet "$wheel"
}

install_with_uv() {
  say "no Python 3.11 to 3.13 is here: uv brings one"
  bring_uv
  UV_CACHE_DIR=$dir/cache UV_PYTHON_INSTALL_DIR=$dir/python UV_NO_CONFIG=1
  export UV_CACHE_DIR UV_PYTHON_INSTALL_DIR UV_NO_CONFIG
  run "$uv" venv --quiet --managed-python --python "$PYTHONS" "$dir/venv"
  run "$uv" pip install --quiet --python "$dir/venv/bin/python" "$wheel"
}

undo() { # of an installation that did not end
  status=$?
  trap - EXIT
  if [ "$status" -ne 0 ]; then
    say "that did not work: everything is as it was before" >&2
    rm -rf "$dir/venv" "$dir/uv" "$dir/cache" "$dir/uv.tar.gz"
    if [ -d "$dir/former" ]; then
      mv "$dir/former/venv" "$dir/" && rmdir "$dir/former"
    else
      remove_link
      rm -rf "$dir"
      remove_folders "$folders"
    fi
  fi
  exit "$status"
}

remove_link() {
  case $(readlink "$link" 2>/dev/null || true) in "$dir"/*) run rm -f "$link" ;; esac
}

remove_folders() { # those that are empty now
  printf '%s\n' "$1" | while IFS= read -r folder; do
    if [ -n "$folder" ] && [ -d "$folder" ]; then rmdir "$folder" 2>/dev/null || true; fi
  done
}

prepare_folder() {
  if [ -e "$link" ] || [ -L "$link" ]; then
    case $(readlink "$link" 2>/dev/null || true) in
      "$dir"/*) ;;
      *) fail "$link is there already, and not of this script" "remove it, or choose another folder: --bin DIR" ;;
    esac
  fi
  if [ -e "$dir" ] && [ ! -f "$made" ]; then
    fail "$dir is there already, and not of this script" "choose another folder: --dir DIR"
  fi
  folders=$(cat "$made" 2>/dev/null || true)
  if [ -z "$dry_run" ]; then
    trap undo EXIT
    trap 'exit 130' INT TERM HUP
  fi
  make_folder "$dir"
  if [ -d "$dir/venv" ]; then # comes back if the new one cannot be installed
    run rm -rf "$dir/former"
    run mkdir "$dir/former"
    run mv "$dir/venv" "$dir/former/"
  fi
  make_folder "$bin"
}

install() {
  check_system
  find_source
  find_python
  prepare_folder
  say "installing $package into $dir"
  fetch_wheel
  say "fetching packages of about 120 MB: a minute or more"
  if [ -n "$python" ]; then install_with_python; else install_with_uv; fi
  run "$dir/venv/bin/edgepp" version
  run ln -sf "$dir/venv/bin/edgepp" "$link"
  if [ -n "$dry_run" ]; then say "nothing was changed"; return; fi
  printf '%s\n' "$folders" >"$made"
  if [ -f "$0" ]; then # which may be the copy itself
    cp "$0" "$dir/install.sh.new"
    mv "$dir/install.sh.new" "$dir/install.sh"
  fi
  trap - EXIT INT TERM HUP
  rm -rf "$dir/cache" "$dir/uv" "$dir/former" # last: until here the former installation can come back
  case $wheel in "$dir"/*) rm -f "$wheel" ;; esac
  say "installed: $link"
  case :$PATH: in *":$bin:"*) ;; *) say "put it on your path: export PATH=\"$bin:\$PATH\"" ;; esac
  say "next: edgepp serve, or edgepp join CODE; completion of your shell: edgepp completion --help"
  say "to undo: sh $dir/install.sh --uninstall"
}

data_folders() {
  if [ "$(uname -s)" = Darwin ]; then
    printf '%s\n' "$home/Library/Application Support/edgepp" "$home/Library/Caches/edgepp"
  else
    printf '%s\n' "${XDG_CONFIG_HOME:-$home/.config}/edgepp" "${XDG_CACHE_HOME:-$home/.cache}/edgepp"
  fi
}

remove_service() {
  if [ -f /Library/LaunchDaemons/edgepp.plist ]; then
    fail "a daemon runs this edgepp" "first run: sudo $link service remove --daemon"
  fi
  if [ -f "${XDG_CONFIG_HOME:-$home/.config}/systemd/user/edgepp.service" ] ||
    [ -f "$home/Library/LaunchAgents/edgepp.plist" ]; then
    run "$dir/venv/bin/edgepp" service remove || fail "the service cannot be removed" "see the message above"
  fi
}

remove() {
  [ -f "$made" ] || fail "edgepp is not installed in $dir" "name the folder that it was installed into: --dir DIR"
  remove_service
  folders=$(cat "$made")
  remove_link
  say "removing $dir"
  run rm -rf "$dir"
  data_folders | while IFS= read -r folder; do
    if [ ! -d "$folder" ]; then continue; fi
    if [ -n "$purge" ]; then
      say "removing $folder"
      run rm -rf "$folder"
    else
      say "kept: $folder; to remove it: rm -rf '$folder', or --purge"
    fi
  done
  if [ -z "$dry_run" ]; then remove_folders "$folders"; else say "nothing was changed"; fi
}

main() { # last and whole, so that a script that arrives in part does nothing
  parse "$@"
  if [ -n "$uninstall" ]; then remove; else install; fi
}

main "$@"
