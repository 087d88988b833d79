"""Bare Debian roots, and what is in them."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "bare"
RELEASE = "bookworm"
_CHANGING = ("proc", "sys", "dev", "run", "tmp", "var/tmp")


def require(*programs: str) -> None:
    """End this process with a sentence where a check cannot run."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        sys.exit("this check needs Linux and root")
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        sys.exit(f"this check needs {', '.join(missing)}: apt-get install debootstrap systemd-container")


def debian(name: str, packages: Sequence[str]) -> Path:
    """A root of this name with ``packages``; made once, which takes a minute or two."""
    root = FOLDER / name
    if not (FOLDER / f"{name}.whole").exists():
        shutil.rmtree(root, ignore_errors=True)
        FOLDER.mkdir(parents=True, exist_ok=True)
        tell(f"making the root {name}")
        command = ["debootstrap", "--variant=minbase", f"--include={','.join(packages)}", RELEASE, str(root)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (FOLDER / f"{name}.whole").touch()
    return root


def fresh_copy(root: Path) -> Path:
    """A copy of ``root`` that a check may change."""
    copy = FOLDER / f"{root.name}.copy"
    shutil.rmtree(copy, ignore_errors=True)
    subprocess.run(["cp", "-a", "--reflink=auto", str(root), str(copy)], check=True)
    return copy


def contents(root: Path) -> dict[str, tuple[int, int, str]]:
    """Mode, size and link target of each path of ``root``, without what changes by itself."""
    found: dict[str, tuple[int, int, str]] = {}
    waiting = [root]
    while waiting:
        for path in waiting.pop().iterdir():
            inside, about = str(path.relative_to(root)), path.lstat()
            is_folder = stat.S_ISDIR(about.st_mode)
            link = str(path.readlink()) if path.is_symlink() else ""
            found[inside] = (about.st_mode, 0 if is_folder else about.st_size, link)
            if is_folder and inside not in _CHANGING:
                waiting.append(path)
    return found


def in_namespace(module: str, *arguments: str) -> int:
    """Run a module of this folder in namespaces of its own, with loopback as the only network; its exit status."""
    command = f"ip link set lo up && exec {sys.executable} -m {module} " + " ".join(arguments)
    unshare = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", command]
    return subprocess.run(unshare, cwd=ROOT).returncode


def tell(text: str) -> None:
    """Print a line of progress."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
