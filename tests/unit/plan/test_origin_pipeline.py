"""The figures of Together-LLM's pipeline over gRPC (2024), each computed again by the functions of `edgepp plan`.

A tolerance is half of the last digit that the source prints, unless a test says why it takes more.
"""

from __future__ import annotations

import dataclasses

import pytest

from edgepp.layer_range import split_evenly
from edgepp.placement.values import LinkSpeed, Plan
from edgepp.plan.advice import Need, needs
from edgepp.plan.cluster_spec import ClusterSpec, Node
from edgepp.plan.layout import ClusterQuestion, Layout
from edgepp.plan.machines import Efficiency, Machine, Model, Stage, Workload
from edgepp.plan.predict import predict
from tests.unit.plan.origin_models import MIB, SIZE, mbit, near

# required bandwidth


def test_a_token_is_16384_bytes_a_hop() -> None:
    assert SIZE.hidden_bytes(1, 2) == 16_384


FREE = Efficiency(overlap=1.0, hop_s=0.0, sample_s=0.0)


def pipeline(item_bytes: int, bytes_per_s: float, flops_per_s: float, stages: int, apart: bool) -> tuple[Model, Layout]:
    """Llama 70B over 8 hops of hidden states, without caches and head: ``apart`` has its coordinator elsewhere.

    The way back to the coordinator is a hop too, of one row; a coordinator beside the first stage makes none there.
    """
    size = dataclasses.replace(SIZE, kv_bytes=0)
    model = Model("70b", size, head_bytes=0, head_flops=0, attention_flops=0, context=4096, wire_item_bytes=item_bytes)
    names = [f"n{number}" for number in range(stages)]
    machines = {name: Machine(name, bytes_per_s, flops_per_s, FREE) for name in ("c", *names)}
    nodes = tuple(Node(machines[name], memory_bytes=0) for name in (["c", *names] if apart else names))
    cluster = ClusterSpec(nodes, default=LinkSpeed(0.0, 1e9))
    placed = tuple(Stage(machines[name], part) for name, part in zip(names, split_evenly(80, stages), strict=True))
    found = predict(model, placed, cluster.links, Workload(1000, 1, (1,), chunk=1000), cluster.coordinator.machine)
    return model, Layout(cluster, Plan(()), placed, found)


def decode_need(item_bytes: int) -> Need:
    """20 token/s over 8 stages, of which 40 ms compute."""
    model, layout = pipeline(item_bytes, 80 * SIZE.layer_bytes / 40e-3, 1e18, 8, apart=False)
    work = Workload(1000, 1, (1,), chunk=1000)
    return next(needs(ClusterQuestion(model, work, tpot_s=1 / 20), layout))


def prefill_need(item_bytes: int) -> Need:
    """1000 tokens over 8 stages within 3 s, of which 2 s compute."""
    model, layout = pipeline(item_bytes, 1e18, 1000 * 80 * SIZE.layer_flops / 2.0, 8, apart=True)
    work = Workload(1000, 1, (1,), chunk=1000)
    return next(needs(ClusterQuestion(model, work, ttft_s=3.0), layout))


def test_decode_at_20_token_s_needs_104_9_mbit_s_and_not_13_mbps() -> None:
    """The origin writes 13 Mbps: it divided bytes by milliseconds, 13.1 MB/s, and called them megabits."""
    need = decode_need(2)
    assert need.wanted_s - need.without_links_s == near(10e-3, rel=1e-3)  # 1.25 ms for each of 8 hops
    assert mbit(need.bytes_per_s or 0) == near(104.9, abs=0.1)  # the search stops within 0.1 %
    assert (need.bytes_per_s or 0) / 1e6 == near(13.1, abs=0.05)


def test_first_token_in_3_s_needs_1_05_gbit_s_and_not_131_mbps() -> None:
    """The origin's 131 Mbps is the same slip: 131 MB/s."""
    assert SIZE.hidden_bytes(1000, 2) == 16.384e6
    need = prefill_need(2)
    assert need.wanted_s - need.without_links_s == near(1.0, rel=1e-3)  # 125 ms for each of 8 hops
    assert mbit(need.bytes_per_s or 0) / 1000 == near(1.05, abs=0.005)
    assert (need.bytes_per_s or 0) / 1e6 == near(131, abs=0.5)


def test_halving_the_bytes_halves_the_time_and_the_bandwidth() -> None:
    whole, half = (SIZE.hidden_bytes(1000, item) for item in (2, 1))
    link = LinkSpeed(0.0, 131e6)
    assert link.transfer_s(half) == near(link.transfer_s(whole) / 2)
    for need in (decode_need, prefill_need):
        assert need(1).bytes_per_s == near((need(2).bytes_per_s or 0) / 2, rel=2e-3)


def test_overlapped_prefill_sends_the_prompt_in_pieces() -> None:
    """Over 8 hops of 125 ms: 1 s in one piece; in many it comes near the time of one hop alone."""
    model, layout = pipeline(2, 1e18, 1e30, 8, apart=True)
    links = {pair: LinkSpeed(0.0, 8 * model.size.hidden_bytes(1000, 2)) for pair in layout.cluster.links}
    for pieces, seconds in ((1, 1.0), (2, 0.5625), (8, 0.234375), (1000, 0.125875)):
        work = Workload(1000, 1, (1,), chunk=1000 // pieces)
        found = predict(model, layout.stages, links, work, layout.cluster.coordinator.machine)
        assert found.prefill.ttft_s == near(seconds + 0.125e-3, rel=1e-5)  # the last row goes back


# the table of matrices, rows: (transmission ms, codec ms, total ms, MB/s)

PLAIN = {
    1: (14.05, 0.01, 14.06, 2.22),
    4: (29.89, 0.01, 29.90, 4.18),
    16: (76.95, 0.01, 76.97, 6.50),
    32: (137.05, 0.01, 137.06, 7.30),
    64: (262.03, 0.01, 262.04, 7.63),
}
LZ4 = {
    1: (18.10, 0.08, 18.18, 1.73),
    4: (30.82, 0.19, 31.01, 4.06),
    16: (78.23, 2.80, 81.02, 6.39),
    32: (136.85, 5.62, 142.47, 7.31),
    64: (249.84, 10.37, 260.20, 8.01),
}
ZLIB = {
    1: (13.95, 1.96, 15.91, 2.24),
    4: (32.74, 9.82, 42.56, 3.82),
    16: (77.19, 32.65, 109.84, 6.48),
    64: (256.25, 83.67, 339.92, 7.80),
}


@pytest.mark.parametrize("table", [PLAIN, LZ4, ZLIB], ids=["plain", "lz4", "zlib"])
def test_the_matrix_tables_total_is_transmission_and_codec(table: dict[int, tuple[float, ...]]) -> None:
    for transmission, codec, total, _ in table.values():
        assert transmission + codec == near(total, abs=0.011)


@pytest.mark.parametrize("table", [PLAIN, LZ4, ZLIB], ids=["plain", "lz4", "zlib"])
def test_the_matrix_tables_mb_s_is_mib_of_one_way_float32_by_the_round_trip(
    table: dict[int, tuple[float, ...]],
) -> None:
    """MB/s is MiB/s of a matrix counted once and in float32, though it goes both ways; the codec's time is left out."""
    for rows, (transmission, _, _, rate) in table.items():
        size = SIZE.hidden_bytes(rows, 4)
        assert size / MIB / (transmission / 1e3) == near(rate, abs=0.011)


def test_the_matrix_tables_link_is_about_64_mbit_per_s() -> None:
    """What really passes is float16, there and back; at 64 rows latency hardly counts."""
    both_ways = 2 * SIZE.hidden_bytes(64, 2)
    assert mbit(both_ways / (PLAIN[64][0] / 1e3)) == near(64, abs=0.5)


def test_compression_pays_only_for_many_tokens() -> None:
    """In the origin's own table: lz4 from 64 rows on, zlib never."""
    pays = {rows: LZ4[rows][2] < PLAIN[rows][2] for rows in PLAIN}
    assert pays == {1: False, 4: False, 16: False, 32: False, 64: True}
    assert not any(ZLIB[rows][2] < PLAIN[rows][2] for rows in ZLIB)


def test_the_codecs_break_even_follows_from_its_rate_and_ratio() -> None:
    """lz4 at 64 rows shrank the time of the wire by 1.049, and took 10.37 ms for 2 MiB in float32."""
    size, codec_s = SIZE.hidden_bytes(64, 4), LZ4[64][1] / 1e3
    ratio = PLAIN[64][0] / LZ4[64][0]

    def gain_s(bytes_per_s: float) -> float:
        link = LinkSpeed(0.0, bytes_per_s)
        return link.transfer_s(size) - (link.transfer_s(size / ratio) + codec_s)

    measured = size / (PLAIN[64][0] / 1e3)
    assert gain_s(measured) == near((PLAIN[64][2] - LZ4[64][2]) / 1e3, abs=0.03e-3)
    break_even = (1 - 1 / ratio) * size / codec_s
    assert break_even > measured
    assert gain_s(break_even) == near(0, abs=1e-12)
    assert gain_s(2 * break_even) < 0


def test_the_pipeline_kept_0_73_of_one_machines_speed() -> None:
    assert near(0.73, abs=0.005) == 8.04 / 10.96
