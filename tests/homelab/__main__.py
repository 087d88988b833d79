"""`python -m tests.homelab mac1 mac2 pi`: the command behind `make homelab`."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from tests.homelab.lab import Lab, own_wheel
from tests.homelab.page import failures, page
from tests.homelab.ssh import HostError, Remote


def say(text: str) -> None:
    """Print a line with the time."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="tests.homelab", description=__doc__)
    parser.add_argument("hosts", nargs="+", metavar="HOST", help="as ssh knows it; the first one coordinates")
    parser.add_argument("-m", "--model", default="smollm2-135m")
    parser.add_argument("--out", type=Path, help="folder for the page, reports and logs [./homelab-<date>]")
    parser.add_argument("--ssh-config", metavar="FILE", help="configuration for ssh and scp")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="wheels to install from, instead of PyPI")
    parser.add_argument("--own-wheel", type=Path, metavar="FILE", help="edgepp's wheel [built from this clone]")
    parser.add_argument("--cache", metavar="DIR", help="folder on the hosts with models [each one's own]")
    parser.add_argument("--check-only", action="store_true", help="only look whether the hosts can take part")
    return parser.parse_args(arguments)


def others(folder: Path) -> list[Path]:
    """The wheels in a folder but edgepp's own."""
    return sorted(wheel for wheel in folder.glob("*.whl") if not wheel.name.startswith("edgepp-"))


def main(arguments: list[str] | None = None) -> int:
    """Run the home lab; the exit status."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    out = options.out or Path(f"homelab-{datetime.now().strftime('%Y-%m-%d-%H%M%S')}")
    lab = Lab(
        [Remote(name, options.ssh_config) for name in dict.fromkeys(options.hosts)],
        out,
        say,
        options.model,
        options.cache,
    )
    try:
        errors = lab.check()
        for remote in lab.remotes:
            facts = lab.facts.get(remote.name)
            if facts is not None:
                say(f"ok  {remote.name}: {facts.system}, {facts.python}, {facts.disk_mb} MB of disk free")
        for error in errors:
            say(f"!!  {error}\n           → {error.do}")
        if errors or options.check_only:
            return int(bool(errors))
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="edgepp-wheel-") as folder:
            wheels = [options.own_wheel or own_wheel(Path(folder))]
            wheels += others(options.wheels) if options.wheels else []
            lab.run(wheels)
    except HostError as error:
        say(f"!!  {error}\n           → {error.do}")
        return 1
    except KeyboardInterrupt:
        say("stopped; what was started and copied is gone")
        return 130
    (out / "homelab.md").write_text(page(lab), encoding="utf-8")
    say(f"{failures(lab)} checks failed; the page: {out / 'homelab.md'}")
    return int(bool(failures(lab)))


if __name__ == "__main__":
    sys.exit(main())
