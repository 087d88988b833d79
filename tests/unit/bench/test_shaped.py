"""bench.shaped: its arguments, what it makes of what it measured, and what it keeps. No namespace is made."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import shaped, shaped_decode
from bench.toolkit import cable
from bench.toolkit.round_trips import OneWayTrip
from edgepp.benchmark.hidden_states import ROWS
from edgepp.errors import UsageError
from edgepp.model.random_checkpoint import TINY, make_checkpoint
from edgepp.wire.message_codec import encode
from edgepp.wire.messages.data import Forward, Hidden

MACHINE = {"cpu": "a CPU", "cpus": 4, "load_1m": 0.1}
TAKEN = {"machine": MACHINE, "commit": "0123456789ab"}


def forward(name: str) -> bytes:
    """The header of a chunk."""
    return encode(Forward(1 << 60, 3, 9, 64, 500, 0, 0, 64, 576, "float32", name, (120,)))  # type: ignore[arg-type]


def one_round(prefill: float, decode: float, **more: Any) -> dict[str, Any]:
    rates = {
        "prefill_tokens_per_s": prefill,
        "decode_tokens_per_s": decode,
        "e2e_tokens_per_s": decode / 2,
        "ttft_s": 100 / prefill,
    }
    bytes_ = {"prompt_bytes": 2300.0, "there_bytes": 2500.0, "back_bytes": 2600.0}
    return rates | bytes_ | {"link_mbit_per_s": 12.5, "wire_ms": 4.0, "codecs": {"none": 8}} | more


def decoding() -> dict[str, Any]:
    plain = [one_round(200, 20), one_round(100, 10), one_round(150, 15)]
    slow = [one_round(100, 15, codecs={"zstd": 8}), one_round(50, 9, codecs={"zstd": 7, "none": 1}), one_round(60, 3)]
    rows = [shaped_decode.row(None, plain, plain), shaped_decode.row(13.0, slow, plain)]
    settings = {"model": "tiny", "threads": 1, "prompt_tokens": 100, "gen": 9, "rounds": 3, "delay_ms": 0.0}
    return {"bench": "shaped_decode", **settings, "rows": rows, **TAKEN}


def sending() -> dict[str, Any]:
    states = np.zeros((64, 8192), np.float16)
    trips = [OneWayTrip(0.3, 0.01, 1_000_000), OneWayTrip(0.1, 0.01, 1_000_000), OneWayTrip(0.2, 0.01, 1_000_000)]
    rows = [
        shaped.row(64.0, ("noise", size, name), states[:size], trips)
        for size in ROWS
        for name in ("none", "lz4", "zstd")
    ]
    return {"bench": "shaped", "rounds": 3, "delay_ms": 5.0, "model": "tiny", "rows": rows, **TAKEN}


# Arguments


def test_rates_are_numbers_that_a_link_may_have() -> None:
    assert shaped.rates("13,1000,2.5e3") == [13.0, 1000.0, 2500.0]
    for text in ("fast", "", "13,", "0", "-5", "nan", "1e9"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not a list of rates"):
            shaped.rates(text)


def test_what_does_not_go_together_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["shaped.py", "--decode", "--noise-only"])
    with pytest.raises(SystemExit) as ended:
        shaped.parse()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: --noise-only does not go with --decode")


def test_a_model_must_hold_prompt_and_answer(tmp_path: Path) -> None:
    options = argparse.Namespace(model=str(make_checkpoint(tmp_path / "tiny", replace(TINY, context=64))), gen=2)
    options.prompt_tokens = 62
    shaped_decode.checked(options)
    options.prompt_tokens = 63
    with pytest.raises(UsageError, match="context of 64 tokens"):
        shaped_decode.checked(options)
    options.gen = 1
    with pytest.raises(UsageError, match="at least 2 generated"):
        shaped_decode.checked(options)


# The cable


def test_a_cable_lets_little_pass_at_once_and_without_a_rate_holds_nothing() -> None:
    assert cable.discipline(13) == ("tbf", "rate", "13000000bit", "burst", "1600", "limit", "4000000")
    assert cable.discipline(2500)[4] == "62500"
    assert cable.discipline(None) == ("noqueue",)
    assert (cable.host(0.0), cable.host(5.0)) == (cable.FAR, "127.0.0.1")


def test_a_second_ctrl_c_does_not_cut_the_clean_up_short(monkeypatch: pytest.MonkeyPatch) -> None:
    handlers: dict[int, Any] = {}
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    cable.end_once()
    assert set(handlers) == {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    with pytest.raises(KeyboardInterrupt):
        handlers[signal.SIGTERM](signal.SIGTERM, None)
    assert set(handlers.values()) == {signal.SIG_IGN}


@pytest.mark.parametrize("broken", ["before", "after", "inside"])
def test_a_namespace_goes_whatever_happens_and_only_where_it_came(
    broken: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def call(*command: str) -> None:
        if command[:3] == ("ip", "netns", "add"):
            if broken == "before":
                raise KeyboardInterrupt
            (tmp_path / command[3]).touch()
            if broken == "after":
                raise KeyboardInterrupt
        elif command[:3] == ("ip", "netns", "del"):
            (tmp_path / command[3]).unlink()

    def interrupted() -> None:
        with cable.cable():
            assert len(list(tmp_path.iterdir())) == 2
            raise KeyboardInterrupt

    monkeypatch.setattr(cable, "run_command", call)
    monkeypatch.setattr(cable, "_end", lambda _: None)
    monkeypatch.setattr(cable, "_NAMED", tmp_path)
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


# What went over it


def test_chunks_are_told_by_their_headers_wherever_they_lie() -> None:
    noise = bytes(range(256)) * 20
    back = encode(Hidden(1, 3, 9, 1, 576, "float32", "zstd", (1, 2)))
    packets = [
        noise + forward("zstd") + noise,
        forward("none") + noise + forward("zstd"),
        noise,
        back + noise,
        b"",
    ]
    assert shaped_decode.codecs_sent(packets) == {"zstd": 2, "none": 1}


def test_a_header_in_two_packets_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    cut = forward("zstd")
    for at in (5, 12, len(cut) - 8):
        assert shaped_decode.codecs_sent([b"x" * 50 + cut[:at], cut[at:], forward("none")]) == {"none": 1}
    assert shaped_decode.codecs_sent([b"\xa7forward", b"\xc1\xc1\xa7forward"]) == {}
    assert "not counted" in capsys.readouterr().err


def test_a_row_has_medians_and_ratios_within_rounds() -> None:
    _, slow = decoding()["rows"]
    assert (slow["mbit_per_s"], slow["prefill_tokens_per_s"], slow["decode_tokens_per_s"]) == (13.0, 60, 9)
    assert slow["spread"]["decode_tokens_per_s"] == [3, 15]
    assert slow["ratio"]["decode"] == 0.75  # of 0.75, 0.9 and 0.2
    assert slow["ratio"]["prefill"] == 0.5
    assert slow["codecs"] == {"zstd": 15, "none": 9}
    assert (slow["prompt_bytes"], slow["link_mbit_per_s"]) == (2300, 12.5)


# Tables, and what is kept


def test_the_table_of_answers() -> None:
    text = "\n".join(shaped_decode.table(decoding()))
    assert "a CPU, commit 0123456789ab, load 0.1 on 4 CPUs before it began." in text
    unshaped, slow = text.splitlines()[-2:]
    assert unshaped.startswith("| unshaped | 12.5 | 150 (100-200) |")
    assert "| 1 (1-1) | 1 (1-1) | 4.00 | none 24 | 2300 | 2500 | 2600 |" in unshaped
    assert "| 9 (3-15) | 0.5 (0.4-0.5) | 0.75 (0.2-0.9) | 4.00 | zstd 15, none 9 |" in slow
    late = decoding() | {"delay_ms": 5.0}
    assert "5 ms later each way" in next(shaped_decode.table(late))


def test_the_table_of_hidden_states_stands_beside_the_origins() -> None:
    text = "\n".join(shaped.table(sending()))
    assert "### 64 Mbit/s, noise" in text
    assert "190.00 + 10.00 = **200.00**" in text
    assert "262.03 + 0.01 = 262.04 (7.63)" in text


def test_both_kinds_are_kept_side_by_side(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    for result in (decoding(), sending(), decoding()):
        shaped.write(folder, shaped.join_results(shaped.read(folder), result))
        kept = json.loads((folder / "links.json").read_text())
        assert kept["decode"]["rows"][1]["mbit_per_s"] == 13.0
    assert kept["bench"] == "shaped"
    assert len(kept["rows"]) == 15
    text = (folder / "links.md").read_text()
    assert text.index("# Hidden states over") < text.index("### 64 Mbit/s") < text.index("# Answers over")
    assert text.endswith("|\n")


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    for text in ("[]", "{}", "not JSON"):
        (tmp_path / "links.json").write_text(text)
        with pytest.raises(UsageError, match="is no result of this script"):
            shaped.read(tmp_path)
