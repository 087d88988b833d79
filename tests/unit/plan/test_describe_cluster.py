"""Clusters on paper: what may be written, what is understood of it, and what is said of the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepp.errors import UsageError
from edgepp.layer_range import LayerRange
from edgepp.placement.values import UNKNOWN_LINK, LinkSpeed
from edgepp.plan import describe_cluster as describe
from edgepp.plan.machines import DATASHEET, DATASHEET_CPU
from edgepp.plan.quantities import format_link_rate, parse_bytes_per_s, parse_flops_per_s, parse_link, parse_seconds

near = pytest.approx


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (parse_bytes_per_s, "100GB/s", 100e9),
        (parse_bytes_per_s, " 51.2 gb/s ", 51.2e9),
        (parse_bytes_per_s, "3.35TB/s", 3.35e12),
        (parse_bytes_per_s, "800MBps", 800e6),
        (parse_bytes_per_s, "17GB", 17e9),
        (parse_flops_per_s, "3.6T", 3.6e12),
        (parse_flops_per_s, "500 GFLOP/s", 500e9),
        (parse_flops_per_s, "10TFLOPS", 10e12),
        (parse_flops_per_s, "2e12", 2e12),
        (parse_seconds, "50ms", 0.05),
        (parse_seconds, "3 s", 3.0),
        (parse_seconds, "300us", 300e-6),
        (parse_seconds, "300µs", 300e-6),
    ],
)
def test_a_quantity_is_read(read: Callable[[str], float], text: str, value: float) -> None:
    assert read(text) == near(value)


@pytest.mark.parametrize(
    ("text", "bytes_per_s", "latency_s"),
    [
        ("1Gbit:0.3ms", 0.94 * 125e6, 0.3e-3),
        ("2.5Gbit/s", 0.94 * 312.5e6, UNKNOWN_LINK.latency_s),
        ("100Mbps:2ms", 0.94 * 12.5e6, 2e-3),
        ("100mbit:1s", 0.94 * 12.5e6, 1.0),
        ("125MB/s:1ms", 125e6, 1e-3),
        ("125 MBps", 125e6, UNKNOWN_LINK.latency_s),
    ],
)
def test_a_link_is_read(text: str, bytes_per_s: float, latency_s: float) -> None:
    link = parse_link(text)
    assert (link.bytes_per_s, link.latency_s) == near((bytes_per_s, latency_s))


@pytest.mark.parametrize(
    ("read", "text"),
    [
        *((parse_bytes_per_s, text) for text in ("", "fast", "-1GB/s", "0GB/s", "100Gbit", "1e999GB/s", "nan")),
        *((parse_flops_per_s, text) for text in ("", "many", "3.6X", "0T", "-2T")),
        *((parse_seconds, text) for text in ("", "50", "-5ms", "5 minutes")),
        *((parse_link, text) for text in ("", "1Gbit:", "1Gbit:fast", "1 m", "0Gbit", "1Gbit:1ms:2ms", ":1ms")),
    ],
)
def test_what_is_no_quantity_is_said_with_an_example(read: Callable[[str], object], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(text)
    assert caught.value.hint.startswith("write it")


def test_a_node_is_read_with_what_it_leaves_out() -> None:
    node = describe.read_node(describe.parse_node("name=mini, mem=16GB,bw=100GB/s,flops=3.6T"), 1)
    assert (node.name, node.memory_bytes) == ("mini", 12e9)
    assert (node.machine.stream_bytes_per_s, node.machine.flops_per_s) == (100e9, 3.6e12)
    assert node.machine.efficiency is DATASHEET
    bare = describe.read_node(describe.parse_node("mem=8GB"), 3)
    assert (bare.name, bare.memory_bytes) == ("node3", 6e9)
    assert (bare.machine.stream_bytes_per_s, bare.machine.flops_per_s) == (
        describe.MEMORY_BYTES_PER_S,
        describe.FLOPS_PER_S,
    )
    assert bare.machine.efficiency is DATASHEET_CPU
    assert describe.read_node(describe.parse_node("mem=8GB,usable=50%,layers=0-3"), 1).memory_bytes == 4e9
    assert describe.read_node(describe.parse_node("mem=8GB,layers=0-3"), 1).pinned == LayerRange(0, 4)


def test_named_hardware_gives_what_is_not_said() -> None:
    node = describe.read_node(describe.parse_node("hw=M4 Pro"), 1)
    assert (node.name, node.machine.stream_bytes_per_s, node.memory_bytes) == ("m4-pro", 273e9, 16e9)
    assert describe.read_node(describe.parse_node("hw=m4-pro,mem=48GB,name=desk"), 1).memory_bytes == 36e9
    assert describe.read_node(describe.parse_node("hw=raspberry-pi-5"), 1).machine.efficiency is DATASHEET_CPU


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name=mini", "the memory of node 1 is missing"),
        ("mem", "is not key=value"),
        ("", "is not key=value"),
        ("mem=16GB,mem=8GB", "is given twice"),
        ("mem=16GB,ram=8GB", "a node has no 'ram'"),
        ("mem=lots", "'lots' is not a size of memory"),
        ("mem=16GB,bw=fast", "'fast' is not a bandwidth"),
        ("mem=16GB,usable=2", "is not a share"),
        ("mem=16GB,usable=-1%", "is not a share"),
        ("hw=m9", "no hardware called 'm9'"),
        ("mem=16GB,layers=5-2", "runs backwards"),
    ],
)
def test_a_node_that_cannot_be_read_is_said_with_a_hint(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        describe.read_node(describe.parse_node(text), 1)
    assert caught.value.hint


def test_two_nodes_that_were_given_one_name_are_refused() -> None:
    nodes = describe.read_nodes([{"name": "a", "mem": "8GB"}, {"name": "a", "mem": "8GB"}])
    with pytest.raises(UsageError, match="two nodes are called a"):
        describe.cluster_of(nodes, [])


def test_links_are_for_all_or_for_a_pair() -> None:
    nodes = [describe.read_node(describe.parse_node(f"name={name},mem=8GB"), 1) for name in "abc"]
    links = [describe.parse_named_link(text) for text in ("100MB/s:1ms", "c,a=10MB/s:2ms")]
    cluster = describe.cluster_of(nodes, links)
    assert cluster.links == {
        ("a", "b"): LinkSpeed(1e-3, 100e6),
        ("a", "c"): LinkSpeed(2e-3, 10e6),
        ("b", "c"): LinkSpeed(1e-3, 100e6),
    }
    assert cluster.coordinator.name == "a"
    assert cluster.only("b", "c").coordinator.name == "b"


@pytest.mark.parametrize("rate", ["13Mbit", "1Gbit", "2.5Gbit", "99.9Mbit"])
def test_a_link_is_said_as_it_is_written(rate: str) -> None:
    assert format_link_rate(parse_link(rate).bytes_per_s).replace(" ", "") == f"{rate}/s"


@given(st.floats(1e3, 1e12))
def test_a_link_that_is_said_is_fast_enough(bytes_per_s: float) -> None:
    assert bytes_per_s * (1 - 1e-6) <= parse_link(format_link_rate(bytes_per_s)).bytes_per_s <= 1.01 * bytes_per_s


@pytest.mark.parametrize("text", ["a=1Gbit", "a,b,c=1Gbit", ",=1Gbit", "a,a=1Gbit"])
def test_a_link_of_no_pair_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a pair"):
        describe.parse_named_link(text)


def test_names_are_checked() -> None:
    a = describe.read_node(describe.parse_node("name=a,mem=8GB"), 1)
    with pytest.raises(UsageError, match="two nodes are called a"):
        describe.cluster_of([a, a], [])
    with pytest.raises(UsageError, match="a link names z, which is no node"):
        describe.cluster_of([a], [(("a", "z"), UNKNOWN_LINK)])
    with pytest.raises(UsageError, match="no node is described"):
        describe.cluster_of([], [])


@pytest.mark.parametrize(
    ("texts", "whose"), [(["1Gbit", "10Gbit"], "all"), (["a,b=1Gbit", "1Gbit", "b,a=10Gbit"], "b and a")]
)
def test_a_link_that_is_given_twice_is_refused(texts: list[str], whose: str) -> None:
    nodes = [describe.read_node(describe.parse_node(f"name={name},mem=8GB"), 1) for name in "ab"]
    with pytest.raises(UsageError, match=f"the link of {whose} is given twice"):
        describe.cluster_of(nodes, [describe.parse_named_link(text) for text in texts])


def test_a_file_says_the_same_as_options(tmp_path: Path) -> None:
    file = tmp_path / "home.toml"
    file.write_text(
        '[[nodes]]\nname = "studio"\nhw = "m2-max"\n[[nodes]]\nname = "pi"\nmem = "8GB"\nusable = 0.5\n'
        '[links]\ndefault = "1Gbit:0.3ms"\n"studio,pi" = "100Mbit:1ms"\n'
    )
    nodes = [
        describe.read_node(describe.parse_node(text), 1)
        for text in ("name=studio,hw=m2-max", "name=pi,mem=8GB,usable=0.5")
    ]
    links = [describe.parse_named_link(text) for text in ("1Gbit:0.3ms", "studio,pi=100Mbit:1ms")]
    assert describe.read_file(file) == describe.cluster_of(nodes, links)


@pytest.mark.parametrize(
    "text",
    [
        "nodes = 3",
        "[nodes]\nname = 'a'",
        "[[nodes]]\nram = '8GB'",
        "[[node]]\nmem = '8GB'",
        "= x",
        "",
        "links = 1",
        pytest.param("a = " + "9" * 5000, id="a long number"),
    ],
)
def test_a_file_that_describes_no_cluster_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        describe.read_file(file)
    assert caught.value.hint


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        describe.read_file(tmp_path / "none.toml")
