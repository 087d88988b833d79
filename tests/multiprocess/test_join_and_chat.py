"""Stages outside of a cluster on loopback, and chats that use them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgepp.model.random_checkpoint import TINY, make_checkpoint
from tests import reference
from tests.cluster import chat, edgepp, node, nodes, peers

PROMPT = "Say something long. " * 10


def _greedy(path: Path, prompt: str, n: int) -> list[int]:
    from edgepp.model.text.tokenizer import Tokenizer

    return reference.greedy(path, Tokenizer.load(path).encode(prompt), n)


@pytest.mark.parametrize(
    "ranges", [["0-3"], ["0-0", "1-3"], ["0-2", "3"], ["0", "1", "2", "3"], ["2-3", "0-1"]], ids="|".join
)
def test_nodes_give_the_whole_models_tokens(tiny: Path, ranges: list[str]) -> None:
    with nodes(tiny, ranges, "--exact") as started:
        answer = chat("-m", str(tiny), *peers(started), "--raw", "-p", PROMPT, "-n", "20", "--exact", "--ignore-eos")
    assert answer["token_ids"] == _greedy(tiny, PROMPT, 20)
    assert [stage["layers"] for stage in answer["stages"]] == sorted(one.ready["layers"] for one in started)
    assert answer["completion_tokens"] == 20
    assert answer["finish_reason"] == "length"
    for stage in answer["stages"]:
        assert stage["compute_s"] > 0
        assert stage["wire_s"] > 0
        assert stage["address"] in {one.address for one in started}


def test_mlx_and_onnx_nodes_mix(tiny: Path) -> None:
    with (
        node(tiny, "0-1", "--exact", "--backend", "mlx") as first,
        node(tiny, "2-3", "--exact", "--backend", "onnx") as second,
    ):
        options = ["--raw", "-p", PROMPT, "-n", "12", "--exact", "--ignore-eos"]
        answer = chat("-m", str(tiny), *peers([first, second]), *options)
    assert answer["token_ids"] == _greedy(tiny, PROMPT, 12)
    assert [stage["backend"] for stage in answer["stages"]] == ["mlx", "onnx"]


@pytest.mark.parametrize("codec", ["lz4", "zstd", "none,zstd,lz4"])
def test_lossless_codecs_change_no_token(tiny: Path, codec: str) -> None:
    with nodes(tiny, ["0-1", "2-3"], "--exact") as started:
        options = ["--raw", "-p", PROMPT, "-n", "12", "--exact", "--ignore-eos", "--codec", codec]
        answer = chat("-m", str(tiny), *peers(started), *options)
    assert answer["token_ids"] == _greedy(tiny, PROMPT, 12)


def test_int8_links_answer(tiny: Path) -> None:
    with nodes(tiny, ["0-1", "2-3"]) as started:
        answer = chat(
            "-m", str(tiny), *peers(started), "--raw", "-p", PROMPT, "-n", "12", "--ignore-eos", "--codec", "int8"
        )
    assert answer["completion_tokens"] == 12


def test_two_chats_share_the_same_nodes(tiny: Path) -> None:
    with nodes(tiny, ["0-1", "2-3"], "--exact") as started:
        options = ["--raw", "-p", PROMPT, "-n", "12", "--exact", "--ignore-eos"]
        first = chat("-m", str(tiny), *peers(started), *options)
        second = chat("-m", str(tiny), *peers(started), *options)
    assert first["token_ids"] == second["token_ids"] == _greedy(tiny, PROMPT, 12)


def test_a_plan_that_does_not_tile_is_one_sentence(tiny: Path, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", TINY, seed=2, rope_theta=5000.0)
    with nodes(tiny, ["0-1", "1-3"]) as (low, high), node(other, "2-3") as foreign:
        for chosen, sentence in [
            ([low], "layers 2-3 are missing"),
            ([low, high], "layer 1 is held twice"),
            ([low, foreign], "runs another model"),
        ]:
            done = edgepp("chat", "-m", str(tiny), *peers(chosen), "-p", "hi")
            assert done.returncode == 1
            assert sentence in done.stderr
            assert len(done.stderr.strip().splitlines()) == 2, "one sentence and a next step"


def test_peers_that_are_not_there_are_one_sentence(tiny: Path) -> None:
    done = edgepp("chat", "-m", str(tiny), "--peer", "127.0.0.1:9", "-p", "hi")
    assert done.returncode == 1
    assert "no edgepp node answers at 127.0.0.1:9" in done.stderr


def test_an_inexact_node_is_refused_an_exact_chat(tiny: Path) -> None:
    with node(tiny, "0-3") as inexact:
        done = edgepp("chat", "-m", str(tiny), *peers([inexact]), "-p", "hi", "--exact")
    assert done.returncode == 1
    assert "does not compute exactly" in done.stderr


def test_a_reachable_address_needs_insecure(tiny: Path) -> None:
    done = edgepp("join", "-m", str(tiny), "--layers", "0-1", "--listen", "0.0.0.0:0")
    assert done.returncode == 2
    assert "--insecure" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["join", "-m", "TINY", "--layers", "0-9"], 1, "lie outside"),
        (["join", "-m", "TINY", "--layers", "3-1"], 2, "runs backwards"),
        (["join", "-m", "TINY", "--layers", "0-1", "--listen", "nonsense"], 2, "not an address"),
        (["join", "-m", "/nowhere", "--layers", "0-1"], 1, "/nowhere"),
        (["chat", "-m", "smolm2-135m", "-p", "hi"], 1, "smollm2-135m"),
        (["chat", "-m", "TINY", "--stages", "9", "-p", "hi"], 1, "cannot be split"),
        (["chat", "-m", "TINY", "--stages", "2", "--peer", "127.0.0.1:1", "-p", "hi"], 2, "exclude each other"),
        (["chat", "-m", "TINY", "-p", " "], 2, "prompt is empty"),
        (["chat", "-m", "TINY", "-p", "hi", "--temp", "-1"], 2, "temperature"),
        (["chat", "-m", "TINY", "-p", "hi", "--codec", "rar"], 2, "no codec 'rar'"),
        (["chat", "-m", "TINY", "-p", "word " * 2000], 2, "context"),
        (["chat", "-m", "TINY", "-p", "hi", "--choices", "0"], 2, "1 to 16 choices"),
    ],
)
def test_bad_input_is_one_clear_sentence(tiny: Path, arguments: list[str], status: int, sentence: str) -> None:
    done = edgepp(*[str(tiny) if text == "TINY" else text for text in arguments])
    assert done.returncode == status
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_join_prints_what_it_loaded(tiny: Path) -> None:
    with node(tiny, "1-2") as one:
        ready = one.ready
    assert ready["layers"] == [1, 3]
    assert ready["weight_bytes"] > 0
    assert ready["seconds"] > 0
    assert ready["backend"] in ("onnx", "mlx")


@pytest.mark.parametrize("stages", [None, 1, 2, 4])
def test_one_machine_alone_or_over_local_stages(tiny: Path, stages: int | None) -> None:
    where = [] if stages is None else ["--stages", str(stages)]
    answer = chat("-m", str(tiny), *where, "--raw", "-p", PROMPT, "-n", "15", "--exact", "--ignore-eos")
    assert answer["token_ids"] == _greedy(tiny, PROMPT, 15)
    assert len(answer["stages"]) == (stages or 1)


def test_piped_input_gets_one_answer(tiny: Path) -> None:
    done = edgepp("chat", "-m", str(tiny), "-n", "5", "--ignore-eos", stdin="hello\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n")
    assert "5 tokens" in done.stderr


def test_a_seed_repeats_an_answer_and_a_stop_string_ends_it(tiny: Path) -> None:
    drawn = ["-m", str(tiny), "--raw", "-p", PROMPT, "-n", "30", "--ignore-eos", "--temp", "1.0", "--seed", "5"]
    first, second = chat(*drawn), chat(*drawn)
    assert first["token_ids"] == second["token_ids"]
    stop = first["text"][4:7]
    stopped = chat(*drawn, "--stop", stop)
    assert stopped["finish_reason"] == "stop"
    assert first["text"].startswith(stopped["text"])
    assert stop not in stopped["text"]


def test_choices_are_numbered_or_listed(tiny: Path) -> None:
    drawn = ["-m", str(tiny), "--raw", "-p", PROMPT, "-n", "9", "--ignore-eos", "--temp", "1.0", "--exact"]
    found = chat(*drawn, "--seed", "5", "--choices", "2", "--logprobs", "1")
    alone = [chat(*drawn, "--seed", seed) for seed in ("5", "6")]
    assert [choice["token_ids"] for choice in found["choices"]] == [answer["token_ids"] for answer in alone]
    assert [choice["text"] for choice in found["choices"]] == [answer["text"] for answer in alone]
    assert [len(choice["logprobs"]) for choice in found["choices"]] == [9, 9]
    assert max(choice["reused_tokens"] for choice in found["choices"]) == alone[0]["prompt_tokens"] - 2
    shown = edgepp("chat", *drawn, "--choices", "2")
    assert shown.stdout.startswith("1. ")
    assert "\n2. " in shown.stdout
    assert shown.stderr.count("9 tokens · first after") == 2


def test_models_pull_of_a_folder_says_where_it_is(tiny: Path) -> None:
    done = edgepp("models", "pull", str(tiny), "--json")
    assert json.loads(done.stdout) == {"path": str(tiny)}
