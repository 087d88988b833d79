"""The wheel and the source distribution, built twice from two copies of the tree and compared byte by byte.

``python -m tests.builders.distributions FOLDER`` (``make dist``) leaves both in ``FOLDER``, with their SHA-256.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def copy_tree(target: Path, *, mtime_s: int, mode: int) -> Path:
    """Copy the files that git tracks, each with the given time and permissions, in a folder of its own."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            copy = target / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy)
            copy.chmod(mode)
            os.utime(copy, (mtime_s, mtime_s))
    return target


def build(tree: Path, out: Path, *, epoch_s: int) -> dict[str, bytes]:
    """The distributions of ``tree`` by file name; ``epoch_s`` is the time that the archives give to their files."""
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch_s)}
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(out)]
    subprocess.run(command, cwd=tree, check=True, capture_output=True, text=True, env=environment)
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def build_wheel(folder: Path) -> Path:
    """The wheel of the files that git tracks, built once in ``folder``.

    Raises:
        CalledProcessError: git or hatchling failed.
    """
    built = folder / "built"
    build(copy_tree(folder / "tree", mtime_s=10**9, mode=0o644), built, epoch_s=commit_time_s())
    return next(built.glob("*.whl"))


def build_twice(folder: Path, *, epoch_s: int) -> dict[str, bytes]:
    """Build from two copies that differ in place, time and permissions; both results are the same bytes.

    Raises:
        AssertionError: a distribution differs, or one is missing.
    """
    first = build(copy_tree(folder / "one", mtime_s=10**9, mode=0o644), folder / "first", epoch_s=epoch_s)
    again = build(copy_tree(folder / "b" / "two", mtime_s=1_700_000_000, mode=0o640), folder / "again", epoch_s=epoch_s)
    assert {Path(name).suffix for name in first} == {".whl", ".gz"}, sorted(first)
    assert sorted(first) == sorted(again)
    different = [name for name, data in first.items() if data != again[name]]
    assert not different, f"two builds differ: {different}"
    return first


def commit_time_s() -> int:
    """Time of the present commit, in seconds since 1970."""
    command = ["git", "log", "-1", "--format=%ct"]
    return int(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Build twice, compare, and write the distributions into the folder of the first argument."""
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, data in build_twice(Path(folder), epoch_s=commit_time_s()).items():
            (out / name).write_bytes(data)
            sys.stdout.write(f"{hashlib.sha256(data).hexdigest()}  {name}\n")


if __name__ == "__main__":
    main()
