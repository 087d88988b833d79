"""Command-line clients from npm at the versions of ``tests/clients/package.json``, installed when a test first asks."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import platformdirs
import pytest
from filelock import FileLock

_PACKAGES = Path(__file__).parents[1] / "clients" / "package.json"
_INSTALL_S = 400
"""Seconds that npm may take: a client is up to 250 MB."""


def npm_client(package: str, binary: str) -> Path:
    """The path of the command ``binary`` of the npm package ``package``; skips the test where there is no such client.

    Each version lives in a folder of its own in the user's cache, which runs and checkouts share. Set
    ``EDGEPP_NPM_CLIENTS`` to have it elsewhere.
    """
    return _installed(package) / ".bin" / binary


def npm_library(package: str) -> Path:
    """The folder ``node_modules`` that has the npm package ``package``; skips like ``npm_client``."""
    return _installed(package)


def _installed(package: str) -> Path:
    folder, why_not = _looked_for(package)
    if folder is None:
        pytest.skip(why_not)
    return folder


@functools.cache
def _looked_for(package: str) -> tuple[Path | None, str]:
    version = json.loads(_PACKAGES.read_text())["dependencies"][package]
    folder = _cache() / f"{package.strip('@').replace('/', '-')}-{version}"
    modules = folder / "node_modules"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not modules.exists():
            why_not = _install(f"{package}@{version}", folder)
            if why_not:
                return None, why_not
    return modules, ""


def _install(package: str, folder: Path) -> str:
    """Install into ``folder``, whole or not at all; the result says why it failed, or is empty."""
    npm = shutil.which("npm")
    if npm is None:
        return "npm is not installed"
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    (part / "package.json").write_text('{"private": true}\n')
    line = [npm, "install", "--no-audit", "--no-fund", "--no-update-notifier", package]
    try:
        done = subprocess.run(line, cwd=part, capture_output=True, text=True, timeout=_INSTALL_S, check=False)
    except subprocess.TimeoutExpired:
        return f"npm did not install {package} within {_INSTALL_S} seconds"
    if done.returncode != 0:
        return f"npm could not install {package}: {done.stderr.strip()[-300:]}"
    part.rename(folder)
    return ""


def _cache() -> Path:
    chosen = os.environ.get("EDGEPP_NPM_CLIENTS")
    return Path(chosen) if chosen else platformdirs.user_cache_path("edgepp-tests") / "npm"


def client_environment(home: Path, settings: Mapping[str, str]) -> dict[str, str]:
    """An environment in which a client finds ``home`` as its home, no proxy and no account, besides ``settings``."""
    kept = ("PATH", "LANG", "LC_ALL", "TMPDIR", "EDGEPP_TEST_RUN")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    folders = {"HOME": home, "XDG_CONFIG_HOME": home / "config", "XDG_CACHE_HOME": home / "cache"}
    folders |= {"XDG_DATA_HOME": home / "data", "XDG_STATE_HOME": home / "state"}
    return environment | {name: str(path) for name, path in folders.items()} | {"NO_PROXY": "*"} | dict(settings)
