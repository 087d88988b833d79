"""`edgepp chat` asked once: what goes into a prompt, and how an answer that was cut off ends."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from edgepp.cluster.identity import load_identity, new_cluster, save_cluster
from edgepp.model.random_checkpoint import TINY, make_checkpoint
from tests.cluster import EDGEPP, chat, edgepp
from tests.waiting import PATIENCE_S

SCHEMA = '{"type": "object", "properties": {"name": {"type": "string", "minLength": 50}}, "required": ["name"]}'


def test_piped_text_and_a_prompt_are_one_prompt(tiny: Path) -> None:
    options = ["-m", str(tiny), "--raw", "-n", "3", "--ignore-eos", "--json"]
    both = edgepp("chat", *options, "-p", "Summarise", stdin="one\ntwo\n")
    whole = edgepp("chat", *options, stdin="Summarise\n\none\ntwo")
    assert json.loads(both.stdout)["prompt_tokens"] == json.loads(whole.stdout)["prompt_tokens"]
    alone = edgepp("chat", *options, "-p", "Summarise", stdin="\n")
    assert json.loads(alone.stdout)["prompt_tokens"] < json.loads(both.stdout)["prompt_tokens"]


def test_a_prompt_does_not_wait_for_an_input_that_is_no_pipe_and_no_file(tiny: Path) -> None:
    master, slave = os.openpty()
    ours, theirs = socket.socketpair()
    try:
        for stdin in (subprocess.DEVNULL, theirs, slave):
            command = [*EDGEPP, "chat", "-m", str(tiny), "-p", "hi", "-n", "2", "--json"]
            done = subprocess.run(command, stdin=stdin, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
            assert done.returncode == 0, done.stderr
    finally:
        os.close(master)
        os.close(slave)
        ours.close()
        theirs.close()


def test_an_answer_that_was_cut_off_says_so(tiny: Path) -> None:
    done = edgepp("chat", "-m", str(tiny), "--stop", "\n\n\n\n", "-n", "4", "--seed", "1", "-p", "hello")
    assert done.returncode == 0
    assert "cut off after 4 tokens: give a larger -n for the rest" in done.stderr


@pytest.mark.parametrize("as_json", [True, False], ids=["json", "text"])
def test_a_constrained_answer_that_is_cut_off_is_an_error(tiny: Path, tmp_path: Path, as_json: bool) -> None:
    (tmp_path / "schema.json").write_text(SCHEMA)
    held = ["-m", str(tiny), "--schema", str(tmp_path / "schema.json"), "-p", "hello", "-n", "5"]
    done = edgepp("chat", *held, *(["--json"] if as_json else []))
    assert done.returncode == 1
    assert "the answer does not fit the JSON schema, because it was cut off after 5 tokens" in done.stderr
    assert "larger -n" in done.stderr
    assert (json.loads(done.stdout)["text"] if as_json else done.stdout).startswith("{")


def test_a_constrained_answer_that_is_complete_when_cut_off_is_no_error(tiny: Path) -> None:
    done = edgepp("chat", "-m", str(tiny), "--regex", "[a-z ]*", "-p", "hello", "-n", "5")
    assert done.returncode == 0, done.stderr


def test_choices_that_must_be_equal_say_why(tiny: Path) -> None:
    done = edgepp("chat", "-m", str(tiny), "-p", "hi", "-n", "2", "--choices", "2", "--temperature", "0")
    assert "all choices are equal at temperature 0" in done.stderr
    first, second = (line for line in done.stdout.splitlines() if line)
    assert first.removeprefix("1.") == second.removeprefix("2.")


def test_log_probabilities_have_text(tiny: Path) -> None:
    asked = ["-m", str(tiny), "--raw", "-p", "hi", "-n", "3", "--ignore-eos", "--temperature", "0", "--logprobs", "2"]
    answer = chat(*asked)
    for entry in answer["logprobs"]:
        assert entry["top"][0] == {name: entry[name] for name in ("token", "text", "logprob")}
        assert len(entry["top"]) == 2
        assert isinstance(entry["text"], str)
    shown = edgepp("chat", *asked)
    assert "PROBABILITY" in shown.stdout
    assert json.dumps(answer["logprobs"][0]["text"], ensure_ascii=False) in shown.stdout


def test_a_chat_samples_as_the_model_recommends(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "tiny", TINY)
    asked = ["-m", str(path), "--raw", "-p", "hello", "-n", "12", "--ignore-eos", "--seed", "7"]
    greedy = chat(*asked, "--temperature", "0")["token_ids"]
    assert chat(*asked)["token_ids"] != greedy, "a model that says nothing is drawn from"
    (path / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 1.5, "top_k": 40}))
    said = chat(*asked, "--temperature", "1.5", "--top-k", "40", "--top-p", "1")["token_ids"]
    assert chat(*asked)["token_ids"] == said
    (path / "generation_config.json").write_text(json.dumps({"do_sample": False}))
    assert chat(*asked)["token_ids"] == greedy


def test_an_option_of_this_machine_says_that_the_model_does_not_run_in_the_cluster(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("EDGEPP_NAME", "attic")
    save_cluster(new_cluster(load_identity()))
    done = edgepp("chat", "-m", str(tiny), "--threads", "1", "-p", "hi", "-n", "2")
    assert done.returncode == 0, done.stderr
    assert "because of --threads the model runs here, not in the cluster of attic" in done.stderr
    unnamed = edgepp("chat", "--threads", "1", "-p", "hi")
    assert unnamed.returncode == 2
    assert "leave --threads out to ask the cluster" in unnamed.stderr


@pytest.mark.parametrize("name", ["./tiny.gguf", "tiny.Q4_K_M.gguf", "someone/tiny-GGUF", "tiny.safetensors"])
def test_a_model_in_another_format_says_what_is_read(name: str) -> None:
    done = edgepp("chat", "-m", name, "-p", "hi")
    assert done.returncode == 1
    assert "edgepp reads folders in mlx-lm format" in done.stderr
    assert "mlx-community" in done.stderr
