"""One target under atheris until its time is over: ``python -m tests.fuzz.child TARGET SECONDS FOLDER``.

``FOLDER`` keeps the inputs that reach new code, for the next run too. An input that breaks an invariant is written to
``FOLDER/../found`` and ends the process. libFuzzer's lines of progress go to standard error.
"""

from __future__ import annotations

import faulthandler
import hashlib
import os
import signal
import sys
import tempfile
import tracemalloc
from pathlib import Path
from random import Random

import atheris

_MAX_BYTES = 1 << 14
_MAX_RSS_MB = 1500
_MAX_INPUT_S = 20
_OWN_SHARE = 0.7
"""Share of changes that keep the form of an input; the rest are libFuzzer's changes of bytes."""


def main() -> None:
    """Fuzz the target."""
    faulthandler.register(signal.SIGUSR1)
    name, seconds, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    home = tempfile.TemporaryDirectory(prefix="edgepp-fuzz-", ignore_cleanup_errors=True)
    os.environ["EDGEPP_HOME"] = home.name
    with atheris.instrument_imports(include=["edgepp"]):
        from tests.fuzz.targets import TARGETS
    target = TARGETS[name]
    folder.mkdir(parents=True, exist_ok=True)
    found = folder.parent / "found"
    found.mkdir(exist_ok=True)
    for seed in target.seeds():
        (folder / hashlib.sha256(seed).hexdigest()[:20]).write_bytes(seed)

    def mutate(raw: bytes, max_size: int, seed: int) -> bytes:
        draw = Random(seed)  # noqa: S311 - a mix, not a secret
        if target.mutate is None or draw.random() > _OWN_SHARE:
            changed: bytes = atheris.Mutate(raw, max_size)
            return changed
        return target.mutate(raw, draw)[:max_size]

    arguments = [
        *(sys.argv[0], str(folder), f"-artifact_prefix={found}/{name}-", f"-max_total_time={seconds}"),
        *(f"-max_len={_MAX_BYTES}", f"-rss_limit_mb={_MAX_RSS_MB}", f"-timeout={_MAX_INPUT_S}", "-print_final_stats=1"),
    ]
    tracemalloc.start()  # once, since each start and stop leaves 250 bytes behind in CPython 3.11
    atheris.Setup(arguments, target.check, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
