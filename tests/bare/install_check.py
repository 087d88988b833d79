"""``python -m tests.bare.install_check`` (``make install-test``): install.sh in a bare Debian without Python.

The files that the script downloads are real: uv from its wheel of the version that the script names, a Python that uv
brings, edgepp's wheel and those of its dependencies. A server on loopback has them, so uv's addresses are replaced by
its own variables. The Python is Debian's, packed like one of uv's: its builds are on no package index.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from tests.bare.root import FOLDER, ROOT, debian, fresh_copy, in_namespace, require, tell
from tests.builders.distributions import build_twice, commit_time_s

LIBRARIES = ("libexpat1", "libsqlite3-0", "libffi8", "libbz2-1.0", "libssl3", "liblzma5", "libuuid1", "libreadline8")
"""What Debian's Python links to, and uv's has inside."""
SERVED = FOLDER / "served"


def main() -> int:
    """Prepare what is served, and run the check in namespaces of its own."""
    require("debootstrap", "unshare", "ip")
    bare = debian("bare", ("curl", "ca-certificates", "passwd", *LIBRARIES))
    donor = debian("donor", ("python3.11",))
    SERVED.mkdir(exist_ok=True)
    tell("building and fetching what is served")
    wheel = _edgepp()
    _dependencies(wheel)
    _uv()
    _python(donor)
    return in_namespace("tests.bare.install_inside", str(fresh_copy(bare)), str(SERVED), wheel.name)


def _edgepp() -> Path:
    with tempfile.TemporaryDirectory() as folder:
        built = build_twice(Path(folder), epoch_s=commit_time_s())
    (name,) = (name for name in built if name.endswith(".whl"))
    (SERVED / name).write_bytes(built[name])
    return SERVED / name


def _dependencies(wheel: Path) -> None:
    """The wheels of all that edgepp needs, by this environment's own settings of pip."""
    wheels = SERVED / "wheels"
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(wheels), str(wheel)]
    subprocess.run([*download, "--only-binary", ":all:"], check=True)
    shutil.rmtree(SERVED / "simple", ignore_errors=True)
    for path in wheels.iterdir():  # a folder's listing is a page of a simple index
        page = SERVED / "simple" / path.name.partition("-")[0].replace("_", "-").replace(".", "-").lower()
        page.mkdir(parents=True, exist_ok=True)
        (page / path.name).hardlink_to(path)


def _uv() -> None:
    """An archive of uv with the shape of its releases."""
    script = (ROOT / "install.sh").read_text()
    found = re.search(r"^UV_VERSION=(\S+)$", script, re.MULTILINE)
    assert found is not None
    with tempfile.TemporaryDirectory() as folder:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
        subprocess.run([*download, f"uv=={found[1]}"], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith("/scripts/uv"))
            (Path(folder) / "uv").write_bytes(archive.read(name))
        (Path(folder) / "uv").chmod(0o755)
        with tarfile.open(SERVED / "uv.tar.gz", "w:gz") as packed:
            packed.add(Path(folder) / "uv", "uv-release/uv")


def _python(donor: Path) -> None:
    """Debian's Python as an archive of a build that uv installs, and the list by which uv finds it."""
    archive = SERVED / "cpython.tar.gz"
    if not archive.exists():
        with tarfile.open(archive, "w:gz") as packed:
            packed.add(donor / "usr/bin/python3.11", "python/bin/python3.11")
            for name in ("python3", "python"):
                link = tarfile.TarInfo(f"python/bin/{name}")
                link.type, link.linkname = tarfile.SYMTYPE, "python3.11"
                packed.addfile(link)
            packed.add(donor / "usr/lib/python3.11", "python/lib/python3.11", filter=_movable)
    version = subprocess.run(
        ["chroot", str(donor), "python3.11", "-c", "import platform; print(platform.python_version())"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    major, minor, patch = (int(part) for part in version.split("."))
    machine = platform.machine()
    build = {
        "name": "cpython",
        "arch": {"family": machine, "variant": None},
        "os": "linux",
        "libc": "gnu",
        "major": major,
        "minor": minor,
        "patch": patch,
        "prerelease": "",
        "url": "SERVER/cpython.tar.gz",
        "sha256": hashlib.sha256(archive.read_bytes()).hexdigest(),
        "variant": None,
        "build": "20260101",
    }
    (SERVED / "downloads.json").write_text(json.dumps({f"cpython-{version}-linux-{machine}-gnu": build}))


def _movable(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Without links to Debian's other folders, and without its mark that only apt may install here."""
    out = entry.name.endswith("EXTERNALLY-MANAGED") or (entry.issym() and entry.linkname.startswith(("/", "../..")))
    return None if out else entry


if __name__ == "__main__":
    if "--clean" in sys.argv:
        shutil.rmtree(FOLDER, ignore_errors=True)
    sys.exit(main())
