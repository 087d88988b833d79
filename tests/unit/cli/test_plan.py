"""`edgepp plan` as people run it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from edgepp.cli.commands import cli
from edgepp.errors import EdgeppError, PairingError, PlanError, UsageError
from edgepp.model.random_checkpoint import make_checkpoint
from edgepp.plan.hardware import catalogue
from tests.builders.members import live_node, live_stage

SEVENTY = "mlx-community/Llama-3.3-70B-Instruct-4bit"
TWO = (
    "--node", "name=studio,mem=64GB,bw=400GB/s,flops=13T", "--node", "name=mini,mem=16GB,bw=100GB/s,flops=3.6T",
    "--link", "1Gbit:0.3ms",
)  # fmt: skip


def plan(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["plan", *arguments])


def refused(*arguments: str) -> EdgeppError:
    result = plan(*arguments)
    assert isinstance(result.exception, EdgeppError), result.output
    return result.exception


def said(*arguments: str) -> str:
    result = plan(*arguments)
    assert result.exit_code == 0, result.exception
    return " ".join(result.output.split())


def formed(*arguments: str) -> dict[str, Any]:
    result = plan(*arguments, "--json")
    assert result.exit_code == 0, result.exception
    form: dict[str, Any] = json.loads(result.output)
    return form


def test_it_says_what_a_person_asks() -> None:
    text = said(SEVENTY, *TWO, "--tpot", "50ms", "--ttft", "30s")
    assert "0-63 studio" in text
    assert "64-79 mini" in text
    assert "5.37 GB for 2 sequences of 4,096" in text
    assert "No node holds the model alone: it takes 55.18 GB, and studio, the largest, has 48.00 GB." in text
    assert "For 50 ms per token no link is fast enough" in text
    assert "For 30.0 s to the first token (reached" in text
    assert "What would help one answer most: twice the memory bandwidth on" in text
    assert "0.65 of the bandwidth and 0.5 of the FLOP/s of studio (described: 400 GB/s, 13 TFLOP/s), mini" in text


def test_caches_of_8_bits_take_less() -> None:
    assert "1.68 GB for 2 sequences of 4,096" in said(SEVENTY, *TWO, "--kv-bits", "8")


def test_two_nodes_that_are_slower_than_one_are_for_size() -> None:
    text = said("llama-3.1-8b-4bit", "--node", "name=fast,hw=m4-max", "--node", "name=slow,mem=64GB,bw=20GB/s")
    assert "times as fast as fast alone" in text
    assert "use them for size, not speed." in text


def test_equal_nodes_are_for_many_requests() -> None:
    text = said("llama-3.1-8b-4bit", "--node", "name=a,hw=m2,mem=24GB", "--node", "name=b,hw=m2,mem=24GB")
    assert "Two nodes give one answer about as fast as a alone, and have" in text
    assert "times its token/s with 8 requests at once." in text
    assert "size" not in text


def test_names_are_printed_as_they_are() -> None:
    text = said("llama-3.1-8b-4bit", "--node", "name=[/x],mem=16GB", "--node", "name=:x:,mem=16GB")
    assert "0-15 [/x] " in text
    assert "16-31 :x: " in text


def test_one_node_is_enough_where_the_plan_takes_one() -> None:
    text = said("llama-3.1-8b-4bit", "--node", "name=a,hw=m4-max", "--tpot", "1s", "--ttft", "60s")
    assert "All layers run on a" in text
    assert "For 1.0 s per token no link is needed" in text


def test_more_requests_than_slots_or_memory_are_marked() -> None:
    text = said("llama-3.1-8b-4bit", "--node", "mem=12GB", "--requests", "8,16,64")
    assert "with --max-sequences 3, for which there is memory" in text
    assert "they take turns" in text


def test_json_has_what_the_tables_have() -> None:
    form = formed(SEVENTY, *TWO, "--requests", "4, 1")
    assert (form["model"], form["fits"], form["single"]) == ("llama-3.3-70b-4bit", True, None)
    assert [decode["requests"] for decode in form["decode"]] == [1, 4]
    assert [stage["node"] for stage in form["stages"]] == ["studio", "mini"]
    assert form["links"] == [{"nodes": ["studio", "mini"], "bytes_per_s": 117.5e6, "latency_s": 0.0003}]


def test_shares_reached_scale_the_prediction() -> None:
    slow, fast = (formed(SEVENTY, *TWO, "--reached", shares) for shares in ("0.3,0.5", "0.6,0.5"))
    ratio = slow["decode"][0]["stages"][0]["weights_s"] / fast["decode"][0]["stages"][0]["weights_s"]
    assert ratio == pytest.approx(2)


def test_what_does_not_fit_ends_with_status_1_and_what_would_help() -> None:
    error = refused(SEVENTY, "--node", "mem=16GB")
    assert isinstance(error, PlanError)
    assert "one more machine with" in error.hint
    result = plan(SEVENTY, "--node", "mem=16GB", "--json")
    assert result.exit_code == 1
    assert json.loads(result.output)["fits"] is False


def test_where_a_model_does_not_fit_the_same_in_fewer_bits_or_the_largest_others_are_offered() -> None:
    assert "what fits: llama-3.1-8b-4bit, " in refused("llama-3.1-8b-bf16", "--node", "mem=12GB").hint
    hint = refused(SEVENTY, "--node", "hw=m2").hint
    assert "what fits: llama-3.2-1b-bf16, llama-3.2-3b-4bit" in hint
    assert "memory was assumed (m2: Apple M2, 10 GPU cores, 8 GB assumed)" in hint
    assert "what fits" not in refused(SEVENTY, "--node", "mem=100MB").hint


def test_a_context_that_would_help_is_one_that_the_plan_then_takes() -> None:
    error = refused("llama-3.1-8b-4bit", "--node", "mem=8GB", "--max-sequences", "1", "--context", "16384")
    context = error.hint.partition("a context of ")[2].partition(" or less")[0]
    assert "fits" in said("llama-3.1-8b-4bit", "--node", "mem=8GB", "--max-sequences", "1", "--context", context)
    short = refused("llama-3.1-8b-4bit", "--node", "mem=8GB")  # only a context below prompt and answer would fit
    assert "a context of" not in short.hint


def test_a_pipeline_of_another_policy_is_told_apart_from_the_plan_that_is_shown() -> None:
    cluster = ("--node", "name=a,mem=24GB,bw=1MB/s,flops=50G", "--node", "name=b,hw=m2", "--link", "1kB/s:1s")
    assert "a pipeline with --policy speed (a and b)" in said("llama-3.1-8b-4bit", *cluster)
    assert "a pipeline (a and b)" in said("llama-3.1-8b-4bit", *cluster, "--policy", "speed")
    ways = formed("llama-3.1-8b-4bit", *cluster)["ways"]
    assert {way["way"]: way["policy"] for way in ways}["pipeline"] == "speed"


def test_no_plan_of_any_policy_is_faster_than_the_best_way() -> None:
    nodes = ("--node", "mem=128GB", "--node", "mem=4GB", "--node", "mem=24GB", "--link", "80Mbit:0ms")
    for policy in ("memory", "speed", "throughput"):
        form = formed("llama-3.1-8b-bf16", *nodes, "--policy", policy)
        assert form["answer"]["seconds"] >= form["ways"][0]["answer_s"] * (1 - 1e-9)


def test_a_file_that_never_ends_is_one_sentence() -> None:
    assert "larger than 1 MiB" in str(refused("llama-3.1-8b-4bit", "--file", "/dev/zero"))


def test_machines_of_one_kind_need_no_name() -> None:
    form = formed("llama-3.1-8b-4bit", "--node", "hw=m2", "--node", "name=m2-1,hw=M2", "--node", "hw=m2,mem=24GB")
    assert [node["name"] for node in form["nodes"]] == ["m2-2", "m2-1", "m2-3"]


def test_what_a_node_is_promised_is_held_to_its_arithmetic() -> None:
    pi = formed("llama-3.2-3b-4bit", "--node", "mem=8GB,bw=17GB/s,flops=30G")
    assert 1 / pi["decode"][0]["tpot_s"] == pytest.approx(2.3, abs=0.1)
    slow = formed("llama-3.2-3b-4bit", "--node", "mem=8GB,flops=5G")
    assert 1 / slow["decode"][0]["tpot_s"] < 0.5


def test_a_folder_with_a_configuration_is_enough(tmp_path: Path) -> None:
    from edgepp.model.catalogue.cards import Shape

    shape = Shape(
        layers=3, heads=4, kv_heads=2, head_size=16, hidden=64, ffn=128, vocabulary=320, tied=True, context=4096
    )
    folder = make_checkpoint(tmp_path / "toy", shape)
    form = formed(str(folder), "--node", "mem=8GB")
    assert form["stages"][0]["layers"] == [0, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "MODEL is missing"),
        (("lama-3.1-8b-4bit", "--node", "mem=8GB"), "there is no model called"),
        (("someone/unknown-model", "--node", "mem=8GB"), "has no card, and nothing of it is on this disk"),
        ((SEVENTY, "--node", "16GB"), "is not key=value"),
        ((SEVENTY, "--node", "mem=64"), "'64' is not a size of memory: it has no unit"),
        ((SEVENTY, "--node", "mem=64GB,flops=5"), "'5' has no unit"),
        ((SEVENTY, "--node", "mem=64GB", "--file", "x.toml"), "exclude each other"),
        ((SEVENTY, "--link", "1Gbit"), "--link goes with --node"),
        ((SEVENTY, "--node", "mem=64GB", "--link", "fast"), "'fast' is not a link"),
        ((SEVENTY, "--node", "mem=64GB", "--requests", "1,x"), "is not a list of numbers of requests"),
        ((SEVENTY, "--node", "mem=64GB", "--requests", "0"), "is not a list of numbers of requests"),
        ((SEVENTY, "--node", "mem=64GB", "--requests", "9" * 5000), "is not a list of numbers of requests"),
        ((SEVENTY, "--node", "mem=64GB", "--prompt", "0"), "at least 1 token"),
        ((SEVENTY, "--node", "mem=64GB", "--tpot", "50"), "'50' is not a time"),
        ((SEVENTY, "--node", "mem=64GB", "--tpot", ""), "'' is not a time"),
        ((SEVENTY, "--node", "mem=64GB", "--ttft", "0s"), "no first token comes in 0 s"),
        ((SEVENTY, "--node", "mem=64GB", "--reached", "1.5,1"), "is not a pair of shares"),
        ((SEVENTY, "--node", "mem=64GB", "--reached", "0.5"), "is not a pair of shares"),
        ((SEVENTY, "--reached", "1,1"), "--reached goes with --node or --file"),
        ((SEVENTY, "--node", "mem=64GB", "--length", "512"), "--length is for --plot"),
        ((SEVENTY, "--node", "mem=64GB", "--length", "0", "--plot", "x.png"), "a length is at least 1 position"),
        (("llama-3.3-70b", "--slices", "v5e", "--node", "mem=64GB"), "--node does not go with --slices"),
        (("llama-3.3-70b", "--slices", "v5e", "--kv-bits", "8"), "--kv-bits does not go with --slices"),
        (("llama-3.3-70b", "--slices", "v9"), "there is no hardware called 'v9'"),
        (("llama-3.3-70b", "--slices", "v5e:3x3"), "tpu-v5e has no slice 3x3"),
        (("llama-3.3-70b", "--slices", "m4-pro"), "no slices of m4-pro are known"),
        (("llama-3.3-70b", "--slices", "v5e", "--dtype", "bf16,int9"), "'int9' is not a precision"),
        (("llama-3.3-70b", "--slices", "v5e", "--tpot", "0ms"), "no token comes in 0 s"),
        (("llama-3.3-70b", "--slices", "v5e", "--context", "0"), "at least 1 token"),
        (("llama-3.3-70b", "--slices", "v5e:2x2"), "141 GB need 8.8 chips, more than the 4 of slice 2x2"),
        (("llama-9", "--slices", "v5e"), "there is no model called"),
        ((SEVENTY, "--node", "mem=64GB", "--dtype", "int8"), "--dtype goes with --slices"),
        ((SEVENTY, "--file", "/nowhere/x.toml"), "cannot be read"),
    ],
)
def test_bad_input_is_one_sentence_with_a_hint(arguments: tuple[str, ...], message: str) -> None:
    error = refused(*arguments)
    assert message in str(error)
    assert "\n" not in str(error)
    assert error.hint or message in ("exclude each other", "at least 1 token")


def test_slices_fit_80_columns_and_name_the_best_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepp.ui.screen._UNBOUNDED", 80)
    result = plan(
        "llama-3.3-70b", "--slices", "v5e", "--dtype", "bf16,int8:int8", "--context", "8192", "--tpot", "15ms"
    )
    assert result.exit_code == 0, result.exception
    lines = result.output.splitlines()
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if line.startswith("    ")]  # no cell had to go below its row
    assert any(line.split()[:5] == ["bf16", "141.1", "GB", "327.7", "kB"] and "4x4" in line for line in lines)
    (best,) = (line for line in lines if line.endswith("most per chip"))
    assert best.split()[:2] == ["int8:int8", "16"]


def test_slices_are_for_a_model_in_any_precision() -> None:
    whole, short = (formed(name, "--slices", "v5e") for name in ("llama-3.3-70b-4bit", "llama-3.3-70b"))
    assert whole == short
    assert whole["model"] == "llama-3.3-70b"


def test_a_wish_that_no_slice_keeps_is_said() -> None:
    assert "No slice decodes a token of each sequence within 0.1 ms." in said(
        "llama-3.3-70b", "--slices", "v5e", "--tpot", "100us"
    )
    assert "does not fit" in said("llama-3.3-70b", "--slices", "v5e", "--requests", "1000")


def test_hardware_with_a_price_has_flops_per_dollar() -> None:
    lines = plan("--list-hardware").output.splitlines()
    ends = {line.split()[0]: line.split()[-1] for line in lines if line.startswith(("h100", "tpu"))}
    assert ends == {"h100": "3.3e+17", "tpu-v5p": "3.9e+17", "tpu-v5e": "5.9e+17"}


def test_without_a_cluster_it_says_how_to_describe_one() -> None:
    error = refused("llama-3.1-8b-4bit")
    assert isinstance(error, PairingError)
    assert "--node mem=16GB" in error.hint


class Connection:
    """A coordinator that has a status."""

    def __init__(self, status: dict[str, Any]) -> None:
        self.status = status

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("running", "said"),
    [
        ("smollm2-135m", "measured, onnx on cpu with this model"),
        ("llama-3.1-8b-4bit@0123", "measured, onnx on cpu"),
        ("some/other", "measured, onnx on cpu"),
    ],
)
def test_a_live_cluster_is_asked(running: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = live_stage("a", layers=[0, 30], decode_s=0.02, prefill_tokens_per_s=300.0)
    node = live_node("a", roles=["coordinator"])
    status = {"coordinator": "a", "model": running, "nodes": [node], "stages": [stage]}
    monkeypatch.setattr("edgepp.ui.peers.connect", lambda peer: Connection(status))
    form = formed("smollm2-135m", "--context", "2048")
    assert form["nodes"][0]["source"] == said
    assert form["nodes"][0]["reached"] == {"stream": 1.0, "flops": 1.0}


def test_hardware_is_listed_with_its_sources() -> None:
    result = plan("--list-hardware")
    for one in catalogue().values():
        assert one.name in result.output
        assert one.source in result.output
    listed = json.loads(plan("--list-hardware", "--json").output)["hardware"]
    assert [one["name"] for one in listed] == list(catalogue())


def test_a_missing_matplotlib_is_one_clear_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    error = refused("llama-3.1-8b-4bit", "--node", "mem=16GB", "--plot", str(tmp_path / "x.png"))
    assert isinstance(error, UsageError)
    assert str(error) == "--plot needs matplotlib, which is not installed"
    assert error.hint == "pip install 'edgepp[plot]'"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_plot_is_drawn_for_each_length(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "x.svg"
    lengths = ("--length", "512", "--length", "4096")
    assert plan(SEVENTY, *TWO, "--plot", str(file), *lengths).exit_code == 0
    assert file.read_text(encoding="utf-8").count("<svg") == 1
    assert "cannot be written" in str(refused(SEVENTY, *TWO, "--plot", str(tmp_path / "no" / "x.png")))
