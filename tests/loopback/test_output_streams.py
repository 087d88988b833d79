"""Standard streams whose reader takes nothing, or leaves."""

from __future__ import annotations

import fcntl
import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgepp.output_streams import Output
from tests.waiting import eventually

_LINE = b"x" * 1000


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reads, writes = os.pipe()
    yield reads, writes
    for descriptor in (reads, writes):
        try:
            os.close(descriptor)
        except OSError:
            continue  # the test has closed it


def fill(descriptor: int) -> int:
    """Write until a pipe takes no more; returns the bytes."""
    os.set_blocking(descriptor, False)
    count = 0
    try:
        while True:
            count += os.write(descriptor, _LINE)
    except BlockingIOError:
        os.set_blocking(descriptor, True)
        return count


def read_all(descriptor: int, count: int) -> bytes:
    found = b""
    while len(found) < count:
        found += os.read(descriptor, 1 << 16)
    return found


def test_what_the_reader_does_not_take_is_held_in_order(pipe: tuple[int, int]) -> None:
    reads, writes = pipe
    before, output = fill(writes), Output(writes)
    output.hold()
    lines = [b"%04d\n" % number for number in range(2000)]
    for line in lines:
        assert output.write(line) == len(line)
    assert read_all(reads, before + 10_000)[before:] == b"".join(lines)
    output.release()


def test_a_reader_that_leaves_is_told_at_the_next_write(pipe: tuple[int, int]) -> None:
    reads, writes = pipe
    output = Output(writes)
    output.hold()
    output.write(b"one")
    assert os.read(reads, 10) == b"one"
    os.close(reads)
    output.write(b"two")
    eventually("the failure is known", lambda: output.lost is not None)
    with pytest.raises(BrokenPipeError):
        output.write(b"three")
    output.release()


@pytest.mark.parametrize("held", [False, True])
def test_what_a_stream_that_is_not_required_cannot_take_is_lost(*, held: bool) -> None:
    with Path("/dev/full").open("wb") as full:
        output = Output(full.fileno(), required=False)
        if held:
            output.hold()
        assert output.write(_LINE) == len(_LINE)
        eventually("the failure is known", lambda: output.lost is not None)
        assert output.write(_LINE) == len(_LINE)
        output.release()


@pytest.mark.parametrize("held", [False, True])
def test_a_stream_that_another_program_made_non_blocking_gets_all(pipe: tuple[int, int], *, held: bool) -> None:
    reads, writes = pipe
    before = fill(writes)
    os.set_blocking(writes, False)
    output, text = Output(writes), "x" * len(_LINE) * 100
    printed = io.TextIOWrapper(io.BufferedWriter(output), "ascii")
    if held:
        output.hold()
    writing = threading.Thread(target=print, args=(text,), kwargs={"end": "", "file": printed, "flush": True})
    writing.start()
    assert read_all(reads, before + len(_LINE) * 100)[before:] == _LINE * 100
    writing.join()
    output.release()


def test_what_is_held_is_bounded_and_the_end_waits_for_nobody_who_takes_nothing(pipe: tuple[int, int]) -> None:
    reads, writes = pipe
    before, output = fill(writes), Output(writes)
    output.hold()
    for _ in range(2000):
        output.write(_LINE)
    output.release()
    held = 1 << 20
    assert len(read_all(reads, before + held - len(_LINE))) <= before + held
    assert fcntl.fcntl(writes, fcntl.F_GETFL) & os.O_NONBLOCK == 0, "others write on the same terminal"
