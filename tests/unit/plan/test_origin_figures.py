"""The rooflines that edgepp started from, each figure computed again by the functions of `edgepp plan`.

Section 1 is Together-LLM's pipeline over gRPC (2024), section 2 "Serving LLaMA 3-70B" of *How To Scale Your Model*. A
tolerance is half of the last digit that the source prints, unless a test says why it takes more.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from click.testing import CliRunner

from edgepp.cli.commands import cli
from edgepp.layers import split_evenly
from edgepp.model.catalogue.cards import Shape, find, token_flops
from edgepp.placement.types import LinkSpeed, ModelSize, Plan
from edgepp.plan import hardware, roofline
from edgepp.plan.advice import Need, needs
from edgepp.plan.chip_slices import (
    SliceModel,
    fastest_steps,
    read_precision,
    read_slices,
    slice_step,
    smallest_slice,
)
from edgepp.plan.cluster_spec import ClusterSpec, Node
from edgepp.plan.layout import Layout, Question
from edgepp.plan.machines import Efficiency, Machine, Model, Stage, Workload
from edgepp.plan.predict import predict

near = pytest.approx

LLAMA_70B = find("llama-3.3-70b-bf16")
LLAMA_8B = find("llama-3.1-8b-bf16")
LLAMA_405B = Shape(
    layers=126, heads=128, kv_heads=8, head_size=128, hidden=16384, ffn=53248, vocabulary=128256, tied=False,
    context=131072,
)  # fmt: skip
WEIGHTS = 70e9
"""The source counts in round billions; the first test of section 2 shows how little that leaves out."""
V5E, V5P, H100 = (hardware.find(name) for name in ("tpu-v5e", "tpu-v5p", "h100"))
KV_INT8, KV_BF16, KV_INT4 = (roofline.kv_token_bytes(LLAMA_70B, item) for item in (1, 2, 0.5))
MIB = 2**20
SIZE = ModelSize.of(LLAMA_70B)
SLICES_V5E = read_slices(V5E)


def mbit(bytes_per_s: float) -> float:
    return 8 * bytes_per_s / 1e6


# Section 1: required bandwidth


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
    return next(needs(Question(model, work, tpot_s=1 / 20), layout))


def prefill_need(item_bytes: int) -> Need:
    """1000 tokens over 8 stages within 3 s, of which 2 s compute."""
    model, layout = pipeline(item_bytes, 1e18, 1000 * 80 * SIZE.layer_flops / 2.0, 8, apart=True)
    work = Workload(1000, 1, (1,), chunk=1000)
    return next(needs(Question(model, work, ttft_s=3.0), layout))


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


# Section 1: the table of matrices, rows: (transmission ms, codec ms, total ms, MB/s)

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


# Section 2: the model and the chips


def test_llama_70b_has_70e9_weights() -> None:
    assert LLAMA_70B.num_weights() == near(WEIGHTS, rel=0.01)
    assert (LLAMA_70B.layers, LLAMA_70B.hidden, LLAMA_70B.ffn, LLAMA_70B.heads) == (80, 8192, 28672, 64)
    assert (LLAMA_70B.kv_heads, LLAMA_70B.head_size, LLAMA_70B.vocabulary) == (8, 128, 128256)


def test_chips_flops_a_dollar() -> None:
    """3.3e17, 3.9e17, and 5.9e17 where the origin, cutting off, prints 5.8e17."""
    assert H100.flops_per_dollar == near(3.3e17, abs=0.05e17)
    assert V5P.flops_per_dollar == near(3.9e17, abs=0.05e17)
    v5e = V5E.flops_per_dollar
    assert v5e == near(5.91e17, abs=0.005e17)
    assert v5e == near(5.8e17, rel=0.02)


def test_chips_v5e_memory_and_bandwidth() -> None:
    assert V5E.memory_bytes == 16e9
    assert 8.1e11 <= V5E.memory_bytes_per_s <= 8.2e11
    assert (H100.flops_per_s, V5P.flops_per_s, V5E.flops_per_s, V5E.int8_flops_per_s) == (
        9.9e14,
        4.59e14,
        1.97e14,
        3.94e14,
    )


def test_kv_is_160_kb_a_token_in_int8() -> None:
    """The origin's kB here are KiB: 163,840 bytes."""
    assert KV_INT8 / 1024 == 160


def test_kv_of_32k_tokens_is_5_3_gb_and_of_240_sequences_1_3_tb() -> None:
    """5.37 GB, which the origin cuts off to 5.3."""
    sequence = KV_INT8 * 32768
    assert math.floor(sequence / 1e8) / 10 == 5.3
    assert 240 * sequence == near(1.3e12, abs=0.05e12)


def test_kv_and_weights_of_240_long_sequences_take_86_chips() -> None:
    """From the rounded 1.3 TB, as the origin reckons; unrounded it is 85."""
    assert math.ceil(roofline.chips_needed(1.3e12 + WEIGHTS, V5E.memory_bytes)) == 86
    assert math.ceil(roofline.chips_needed(240 * KV_INT8 * 32768 + WEIGHTS, V5E.memory_bytes)) == 85


def test_batch_32_of_8192_needs_112_gb_7_chips_and_so_a_4x2() -> None:
    """The origin multiplies 160e3 where the exact figure is 163,840, hence 41.9 and not 42.9e9."""
    assert near(41.9e9, abs=0.05e9) == 160e3 * 8192 * 32
    size = KV_INT8 * 8192 * 32 + WEIGHTS
    assert size == near(112e9, rel=0.01)
    assert math.ceil(roofline.chips_needed(112e9, V5E.memory_bytes)) == 7
    assert smallest_slice(size, V5E, SLICES_V5E).chips == 8


def serve_32(chips: int) -> roofline.StepTime:
    flops = V5E.int8_flops_per_s or 0
    return roofline.decode_step(32, KV_INT8 * 8192, WEIGHTS, WEIGHTS, 8.1e11, flops, chips)


def test_step_takes_17_ms_on_4x2_and_8_5_ms_on_4x4() -> None:
    """17.4 and 8.7 ms: the origin takes 112 where there are 113e9 bytes, and cuts off."""
    assert serve_32(8).total_s == near(17e-3, rel=0.03)
    assert serve_32(16).total_s == near(8.5e-3, rel=0.03)
    assert roofline.read_s(112e9, 8.1e11, 8) == near(17e-3, abs=0.5e-3)


def test_throughput_is_1882_token_s_235_a_chip() -> None:
    """The origin divides by 17 ms; without that rounding it is 1,836 and 229."""
    assert 32 / round(serve_32(8).total_s, 3) == near(1882, abs=0.5)
    assert 32 / round(serve_32(8).total_s, 3) / 8 == near(235, abs=0.5)
    assert 32 / serve_32(8).total_s == near(1882, rel=0.03)


def test_critical_batches_are_240_120_and_240() -> None:
    assert roofline.critical_batch(V5E.flops_per_s, V5E.memory_bytes_per_s, 2) == near(240, abs=1)
    assert roofline.critical_batch(V5E.flops_per_s, V5E.memory_bytes_per_s, 1) == near(120, abs=1)
    assert roofline.critical_batch(V5E.int8_flops_per_s or 0, V5E.memory_bytes_per_s, 1) == near(240, abs=1)


def test_at_the_critical_batch_weights_and_flops_take_the_same_time() -> None:
    batch = round(roofline.critical_batch(V5E.flops_per_s, V5E.memory_bytes_per_s, 2))
    step = roofline.decode_step(batch, 0, 2 * WEIGHTS, WEIGHTS, V5E.memory_bytes_per_s, V5E.flops_per_s, 16)
    assert step.arithmetic_s == near(step.weights_s, rel=0.005)


# Section 2: the smallest slice

SLICES = {
    # dtype: item bytes, weights GB, KV kB a token, min chips, chips, GB left, sequences, QPS/chip, doubled QPS/chip
    "bf16": (2, 140, 324, 8.75, 16, 116, 43, 0.27, 0.44),
    "int8": (1, 70, 162, 4.38, 8, 58, 43, 0.55, 0.90),
    "int4": (0.5, 35, 81, 2.81, 4, 29, 43, 1.11, 1.80),
}
STEP_S = 19e-3
ORIGIN_KV = 162e3
"""Its KV bytes a token in int8: neither 160 KiB nor 163.84 kB, but 1.1 % from it."""


@pytest.mark.parametrize("dtype", SLICES)
def test_smallest_slice(dtype: str) -> None:
    """KV a token is printed 1.1 % low. For int4 it says 2.81 chips: 35 / 16 is 2.19, two digits changed places."""
    item, weights, kv, chips, slice_, left, sequences, _, _ = SLICES[dtype]
    size = item * WEIGHTS
    assert size == near(weights * 1e9)
    assert roofline.kv_token_bytes(LLAMA_70B, item) == near(kv * 1e3, rel=0.012)
    right = 2.19 if dtype == "int4" else chips
    assert roofline.chips_needed(size, V5E.memory_bytes) == near(right, abs=0.006)
    assert smallest_slice(size, V5E, SLICES_V5E).chips == slice_
    assert slice_ * V5E.memory_bytes - size == near(left * 1e9)
    kv_sequence = roofline.kv_token_bytes(LLAMA_70B, item) * 8192
    assert roofline.sequences_that_fit(int(slice_), V5E.memory_bytes, size, kv_sequence) == sequences


@pytest.mark.parametrize("dtype", SLICES)
def test_smallest_slice_queries_a_second_a_chip(dtype: str) -> None:
    """Within 0.01, since the origin rounds some and cuts off others."""
    chips, sequences, queries = SLICES[dtype][4], int(SLICES[dtype][6]), SLICES[dtype][7]
    assert roofline.queries_per_chip_per_s(sequences, STEP_S, 512, int(chips)) == near(queries, abs=0.01)


@pytest.mark.parametrize("dtype", SLICES)
def test_doubled_slice_queries_a_second_a_chip(dtype: str) -> None:
    """With its own KV figure 140 sequences fit, as in the origin; with the exact one 138, which takes 1.5 % off."""
    item, chips, queries = SLICES[dtype][0], 2 * int(SLICES[dtype][4]), SLICES[dtype][8]
    for kv, fit in ((ORIGIN_KV, 140), (KV_INT8, 138)):
        found = roofline.sequences_that_fit(chips, V5E.memory_bytes, item * WEIGHTS, item * kv * 8192)
        assert found == fit
        assert roofline.queries_per_chip_per_s(found, STEP_S, 512, chips) == near(queries, rel=0.025)


def test_reading_full_hbm_takes_19_ms_and_int4_weights_alone_about_10() -> None:
    """19.5 and 10.7 ms, which the origin cuts off."""
    assert math.floor(roofline.read_s(V5E.memory_bytes, 8.2e11) * 1e3) == 19
    assert math.floor(roofline.read_s(WEIGHTS / 2, 8.2e11, 4) * 1e3) == 10


# Section 2: parallelism, prefill, disaggregation


def test_model_parallelism_is_bound_past_26_chips() -> None:
    assert V5E.flops_per_s / (V5E.ici_bytes_per_s or 1) == near(2200, rel=0.01)
    bound = roofline.parallelism_bound_by_flops(LLAMA_70B.ffn, 2, V5E.flops_per_s, V5E.ici_bytes_per_s or 0)
    assert bound == near(26, abs=0.5)


def test_model_parallelism_is_bound_past_56_chips_at_batch_64() -> None:
    """With bandwidth / link = 8, as the origin rounds it; the v5e's 9.1 makes it 49."""
    assert roofline.parallelism_bound_by_memory(LLAMA_70B.ffn, 64, 8.0, 1.0) == 56
    exact = roofline.parallelism_bound_by_memory(LLAMA_70B.ffn, 64, V5E.memory_bytes_per_s, V5E.ici_bytes_per_s or 0)
    assert exact == near(49, abs=0.5)


def test_one_matmul_on_4x8_takes_11_us_of_ici_18_of_hbm_4_of_flops() -> None:
    """11.6, 17.9 and 4.8 us: ICI and FLOPs are cut off in the origin."""
    time = roofline.sharded_matmul(
        64, 8192, 28672, 32, V5E.ici_bytes_per_s or 0, V5E.memory_bytes_per_s, V5E.flops_per_s
    )
    assert math.floor(time.ici_s * 1e6) == 11
    assert time.hbm_s * 1e6 == near(18, abs=0.5)
    assert math.floor(time.arithmetic_s * 1e6) == 4


def test_prefill_of_8192_tokens_on_16_chips_takes_0_91_s() -> None:
    assert roofline.prefill_s(8192, WEIGHTS, V5E.flops_per_s, 16, 0.4) == near(0.91, abs=0.005)


def test_96_kv_tokens_are_evicted_a_step() -> None:
    assert roofline.evicted_tokens_per_step(32, 8192, 4096) == 96


def test_three_prefill_servers_serve_one_decode_server() -> None:
    prompt_s = roofline.prefill_s(8192, WEIGHTS, V5E.flops_per_s, 16, 0.4)
    assert roofline.prefill_servers(prompt_s, 19e-3, 32, 512) == near(3, abs=0.05)


# Section 2: latency against throughput


def test_latency_and_throughput_over_batch_split_into_weights_kv_and_flops() -> None:
    """As the origin draws it for 16 chips: both grow with the batch; with long sequences KV outgrows the weights."""
    for length in (512, 2048, 8192):
        steps = [
            roofline.decode_step(
                b, KV_INT8 * length, WEIGHTS, WEIGHTS, V5E.memory_bytes_per_s, V5E.int8_flops_per_s or 0, 16
            )
            for b in (1, 2, 4, 8, 16, 32, 64, 128)
        ]
        latencies = [step.total_s for step in steps]
        rates = [b / step.total_s for b, step in zip((1, 2, 4, 8, 16, 32, 64, 128), steps, strict=True)]
        assert latencies == sorted(latencies)
        assert rates == sorted(rates)
        assert steps[0].limit == "weights"
        assert steps[-1].limit == ("KV" if length >= 4096 else "weights")


# Section 2: the exercises it leaves open


def test_exercise_1_flops_of_405b_and_the_lower_bound_on_n_chips() -> None:
    """8.1e11 FLOPs a token; on N v5e at least 4.1 ms / N of arithmetic, and 1 s / N to read bfloat16 weights."""
    weights = LLAMA_405B.num_weights()
    assert weights == near(405e9, rel=0.005)
    assert token_flops(weights) == near(8.1e11, rel=0.005)
    for chips in (1, 16, 256):
        assert roofline.compute_s(token_flops(weights), V5E.flops_per_s, chips) == near(4.12e-3 / chips, rel=0.005)
        assert roofline.read_s(2 * weights, V5E.memory_bytes_per_s, chips) == near(0.99 / chips, rel=0.005)


def test_exercise_2_bytes_of_8b_int8_at_batch_240_and_its_smallest_slice() -> None:
    """Weights 8 GB, KV of 8,192 positions 129 GB, activations (B, F) in bfloat16 6.9 MB: 8.6 chips, so 4x4."""
    weights = LLAMA_8B.num_weights()
    kv = 240 * 8192 * roofline.kv_token_bytes(LLAMA_8B, 1)
    activations = 240 * LLAMA_8B.ffn * 2
    assert weights == near(8.0e9, abs=0.05e9)
    assert kv == near(128.8e9, abs=0.05e9)
    assert activations == near(6.9e6, abs=0.05e6)
    size = weights + kv + activations
    assert roofline.chips_needed(size, V5E.memory_bytes) == near(8.55, abs=0.01)
    assert smallest_slice(size, V5E, SLICES_V5E).chips == 16


def test_exercise_3_the_best_layout_of_405b_int8_under_15_ms_a_token() -> None:
    """8x8: a 4x8 reads its weights in 15.4 ms, and larger slices wait for their links. KV in int8, 8,192 positions."""
    model = SliceModel(LLAMA_405B, read_precision("int8", V5E), 8192)
    assert smallest_slice(model.weight_bytes, V5E, SLICES_V5E).chips == 32
    assert slice_step(model, V5E, 32, 1).step_s > 15e-3
    found = list(fastest_steps(model, V5E, 15e-3, SLICES_V5E))
    assert [one.chips for one in found] == [64, 128, 256]
    assert all(one.step_s <= 15e-3 for one in found)
    assert all(slice_step(model, V5E, one.chips, one.batch + 1).step_s > 15e-3 for one in found)
    best = max(found, key=lambda one: one.tokens_per_s / one.chips)
    assert best.chips == 64
    assert best.ici_s > best.parts.weights_s > best.parts.arithmetic_s
    rate, link = V5E.memory_bytes_per_s, V5E.ici_bytes_per_s or 0
    bound = roofline.parallelism_bound_by_memory(LLAMA_405B.ffn, best.batch, rate, link)
    assert bound < best.chips  # exchanges outlast the weights, as the formula for it says
    least_s = slice_step(model, V5E, 256, 1).step_s
    assert least_s == near(model.weight_bytes / 256 / rate, rel=0.01)  # 1.9 ms


# Section 2: the same tables as the command prints them


def printed(*arguments: str) -> dict[str, Any]:
    command = [
        "plan",
        "llama-3.3-70b",
        "--context",
        "8192",
        "--prompt",
        "8192",
        "--answer",
        "512",
        *arguments,
        "--json",
    ]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.exception
    answer: dict[str, Any] = json.loads(result.output)
    return answer


@pytest.mark.parametrize("dtype", SLICES)
def test_the_command_prints_the_smallest_slice(dtype: str) -> None:
    """With 70.55e9 weights and exact KV bytes 42 sequences fit, where the origin's rounded figures have 43.

    The doubled slice is within 4 % where int8 computes, 8 % for int4: above the critical batch FLOPs take longer than
    weights, which the origin's 19 ms leave out; with FLOPs in bf16 int4 has 1.27 and not 1.80.
    """
    _, weights, kv, chips, slice_, left, sequences, queries, doubled = SLICES[dtype]
    computed = dtype if dtype == "bf16" else f"{dtype}:int8"
    small, large = printed("--slices", "v5e", "--dtype", computed)["slices"]
    assert small["weight_bytes"] == near(weights * 1e9, rel=0.01)
    assert small["kv_token_bytes"] == near(kv * 1e3, rel=0.012)
    assert small["chips_needed"] == near(2.19 if dtype == "int4" else chips, rel=0.01)
    assert (small["chips"], large["chips"]) == (slice_, 2 * slice_)
    assert small["kv_room_bytes"] == near(left * 1e9, rel=0.011)
    assert small["sequences"] == sequences - 1
    assert small["steps"][-1]["step_s"] == near(19.5e-3, rel=0.01)
    assert small["queries_per_chip_per_s"] == near(queries, rel=0.05)
    assert large["queries_per_chip_per_s"] == near(doubled, rel=0.08 if dtype == "int4" else 0.05)
    assert small["critical_batch"] == near(120 if dtype == "int4" else 240, abs=1)


def test_the_command_prints_steps_exchanges_and_prefill() -> None:
    (on_8,) = printed("--slices", "v5e:2x4", "--dtype", "int8", "--requests", "32")["slices"]
    (on_16,) = printed("--slices", "v5e:4x4", "--dtype", "int8", "--requests", "32")["slices"]
    (on_32,) = printed("--slices", "v5e:4x8", "--dtype", "bf16", "--requests", "64")["slices"]
    assert on_8["steps"][0]["step_s"] == near(17e-3, rel=0.03)
    assert on_8["steps"][0]["tokens_per_s"] == near(1882, rel=0.03)
    assert on_16["steps"][0]["step_s"] == near(8.5e-3, rel=0.03)
    assert on_16["prefill_s"] == near(0.91, rel=0.01)
    assert on_8["critical_batch"] == near(120, abs=1)
    assert {name: math.floor(seconds * 1e6 + 0.2) for name, seconds in on_32["matmul"].items()} == {
        "ici_s": 11, "hbm_s": 18, "arithmetic_s": 4
    }  # fmt: skip
    assert on_32["chips_bound_by_flops"] == near(26, abs=0.5)
    (evicting,) = printed("--slices", "v5e:4x4", "--dtype", "int8", "--requests", "32", "--answer", "4096")["slices"]
    assert evicting["evicted_tokens_per_step"] == 96


def test_the_command_draws_latency_against_throughput() -> None:
    (found,) = printed("--slices", "v5e:4x4", "--dtype", "int8:int8", "--requests", "1,2,4,8,16,32,64,128")["slices"]
    for name in ("step_s", "tokens_per_s"):
        values = [step[name] for step in found["steps"]]
        assert values == sorted(values)
    assert (found["steps"][0]["limit"], found["steps"][-1]["limit"]) == ("weights", "KV")
