"""One target fuzzed for some time: child processes until the time is over, and what they found."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bench.toolkit.figures import slope_per_minute

PROPERTIES = "properties"
"""The name of the campaign that runs the tests with hypothesis over examples that no run has had."""
_SHELVES = ("tests/unit", "tests/backend", "tests/loopback")
_MAX_CRASHES = 5
_SAMPLE_S = 1.0
_MAX_ROUND_S = 1800.0
"""For one round of the tests with hypothesis, which is not cut off."""
_GRACE_S = 120.0
"""For the start of a child and its last input."""
_READ = b"\tINITED"
"""Says that the child has read its corpus, before which its memory tells nothing."""
_STATUS = re.compile(r"cov: (\d+) ft: (\d+) corp: (\d+)")
_RUNS = re.compile(r"stat::number_of_executed_units: (\d+)")
_WRITTEN = re.compile(r"Test unit written to (\S+)")
_ERROR = re.compile(r"Uncaught Python exception: ===\n(.*)|== ?(ERROR: .*)")
_FAILED = re.compile(r"^FAILED (\S+)(?: - (.*))?$", re.MULTILINE)


@dataclass
class Crash:
    """One input that broke an invariant."""

    input: str
    error: str
    replay: str
    """The command that gives the input to its target again."""


@dataclass
class Campaign:
    """What fuzzing one target has found."""

    target: str
    seconds: float = 0.0
    runs: int = 0
    coverage: int = 0
    """Edges of instrumented code that the inputs reach."""
    features: int = 0
    corpus: int = 0
    """Inputs kept because each reaches something that the others do not."""
    crashes: list[Crash] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)
    """(seconds, MB) of the child, once it has read its corpus."""

    @property
    def grown_mb_per_min(self) -> float:
        """Slope of the child's memory, without the first quarter."""
        return slope_per_minute(self.memory[len(self.memory) // 4 :])


def fuzz(target: str, seconds: float, folder: Path) -> Campaign:
    """Fuzz a target; after a crash, again with the time that is left."""
    campaign, began_s = Campaign(target), time.monotonic()
    while (left_s := seconds - (time.monotonic() - began_s)) >= 1 and len(campaign.crashes) < _MAX_CRASHES:
        log = folder / f"{target}.log"
        command = [sys.executable, "-m", "tests.fuzz.child", target, str(int(left_s)), str(folder / target)]
        before = len(campaign.crashes)
        _watch(command, log, left_s, campaign)
        _read(log.read_text(encoding="utf-8", errors="replace"), campaign)
        if len(campaign.crashes) == before:
            break
    campaign.seconds = time.monotonic() - began_s
    return campaign


def explore(seconds: float, folder: Path) -> Campaign:
    """Run the tests with hypothesis, each time with another seed, until the time is over."""
    campaign, began_s = Campaign(PROPERTIES), time.monotonic()
    seed = int.from_bytes(os.urandom(4), "little")
    while time.monotonic() - began_s < seconds and len(campaign.crashes) < _MAX_CRASHES:
        seed += 1
        log = folder / f"{PROPERTIES}.log"
        chosen = ("-m", "hypothesis", "-q", "-p", "no:cacheprovider", f"--hypothesis-seed={seed}", *_SHELVES)
        _watch([sys.executable, "-m", "pytest", *chosen], log, _MAX_ROUND_S, campaign)
        text = log.read_text(encoding="utf-8", errors="replace")
        campaign.runs += 1
        for test, reason in _FAILED.findall(text):
            kept = folder / "found" / f"{PROPERTIES}-{seed}.log"
            kept.parent.mkdir(exist_ok=True)
            kept.write_text(text, encoding="utf-8")
            replay = f"EDGEPP_EXAMPLES=explore pytest --hypothesis-seed={seed} {test}"
            campaign.crashes.append(Crash(str(kept), reason, replay))
    campaign.seconds = time.monotonic() - began_s
    return campaign


def _watch(command: list[str], log: Path, seconds: float, campaign: Campaign) -> None:
    """Run a child and note its memory; a child that does not end is killed."""
    began_s = time.monotonic()
    with log.open("wb") as file:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env={**os.environ, "EDGEPP_EXAMPLES": "explore"},
        )
        watched = psutil.Process(child.pid)
        try:
            while child.poll() is None and time.monotonic() - began_s < seconds + _GRACE_S:
                if _READ in log.read_bytes():
                    campaign.memory.extend(_sample(watched, began_s))
                try:
                    child.wait(_SAMPLE_S)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            if child.poll() is None:
                campaign.crashes.append(Crash("", f"did not end within {seconds + _GRACE_S:.0f} s", " ".join(command)))
                with suppress(ProcessLookupError):
                    child.send_signal(signal.SIGUSR1)  # the log gets the place where it hangs
                    time.sleep(_SAMPLE_S)
                child.kill()
            child.wait()


def _sample(process: psutil.Process, began_s: float) -> Iterator[tuple[float, float]]:
    try:
        if rss_bytes := process.memory_info().rss:  # 0 once it has ended
            yield time.monotonic() - began_s, rss_bytes / 1e6
    except psutil.NoSuchProcess:
        return


def _read(text: str, campaign: Campaign) -> None:
    """What libFuzzer's lines tell."""
    campaign.runs += sum(int(number) for number in _RUNS.findall(text))
    if found := _STATUS.findall(text):
        coverage, features, corpus = map(int, found[-1])
        campaign.coverage, campaign.features = max(campaign.coverage, coverage), max(campaign.features, features)
        campaign.corpus = corpus
    for path in _WRITTEN.findall(text):
        error = _ERROR.search(text)
        Path(f"{path}.log").write_text(text[-20_000:], encoding="utf-8")
        replay = f"python -m tests.fuzz.replay {campaign.target} {path}"
        campaign.crashes.append(Crash(path, error[0].splitlines()[-1][:300] if error else "see the log", replay))
    if not campaign.runs and not campaign.crashes:
        campaign.crashes.append(
            Crash("", text.strip()[-300:], f"python -m tests.fuzz.child {campaign.target} 10 /tmp/fuzz")
        )
