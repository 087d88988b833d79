"""What the bench scripts share: rounds in turn, medians, ratios within a round, tables, options as JSON."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import pytest

from bench.toolkit.figures import cell, interleave, medians, ratio_text, ratios, table
from bench.toolkit.script import ScriptArguments, counts, settings
from bench.toolkit.slow_link import SlowLink


def test_cases_take_turns_and_the_warm_up_does_not_count(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[tuple[str, int]] = []

    def measure(name: str, turn: int) -> int:
        asked.append((name, turn))
        return turn

    found = interleave({name: partial(measure, name) for name in "ab"}, 2, str)
    assert found == {"a": [1, 2], "b": [1, 2]}
    assert asked == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert capsys.readouterr().err.splitlines()[:3] == ["warm-up: a: 0", "warm-up: b: 0", "round 1 of 2: a: 1"]


def test_a_ratio_is_formed_within_a_round() -> None:
    over, under = ([{"decode_tokens_per_s": value} for value in values] for values in ((10, 40, 30), (10, 20, 60)))
    found = ratios(over, under, ["decode"])
    assert found == {"decode": 1.0, "spread": {"decode": [0.5, 2.0]}}
    assert ratio_text(found) == "decode 1 (0.5-2)"
    assert medians(over, ["decode_tokens_per_s"]) == {
        "decode_tokens_per_s": 30.0,
        "spread": {"decode_tokens_per_s": [10.0, 40.0]},
    }
    assert cell(medians(over, ["decode_tokens_per_s"]), "decode_tokens_per_s", ".4g") == "30 (10-40)"


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert list(table(("", "rate"), [("one", "1"), ("eleven", "100000")])) == [
        "          rate",
        "one          1",
        "eleven  100000",
    ]
    assert list(table(("a", "b"), [])) == ["a  b"]


def test_options_are_json(monkeypatch: pytest.MonkeyPatch) -> None:
    options = argparse.Namespace(json=True, out=Path("x"), links=[SlowLink(), SlowLink("slow", 5.0)], rate=None, gen=4)
    assert settings(options) == {"out": "x", "links": ["loopback", "slow"], "rate": None, "gen": 4}
    parser = ScriptArguments("A script.")
    parser.shared("model", rounds=3, prompt_tokens=64)
    monkeypatch.setattr("sys.argv", ["x", "--rounds", "7"])
    chosen = parser.parse_args()
    assert (chosen.rounds, chosen.prompt_tokens, chosen.model) == (7, 64, "smollm2-135m")
    assert counts("1,4,16") == [1, 4, 16]
    with pytest.raises(argparse.ArgumentTypeError, match="'0' is not a whole number"):
        counts("1,0")
