"""The formulas on numbers that can be checked in the head; what they owe their sources is in test_origin_figures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepp.errors import PlanError, UsageError
from edgepp.model.cards import catalogue as cards
from edgepp.plan import hardware, roofline
from edgepp.plan.slices import Served, fastest_layouts, smallest_slice

rates = st.floats(1e3, 1e15)


def test_parameters_agree_with_what_cards_of_16_bits_store() -> None:
    for card in cards().values():
        if card.bits is None:
            norms = card.layers * sum(card.layer_vectors().values()) + card.hidden
            assert 2 * (roofline.parameters(card) + norms) == card.bytes_total


def test_a_step_is_kv_and_the_longer_of_weights_and_flops() -> None:
    step = roofline.decode_step(4, 100, 1000, 10, bytes_s=100, flops_s=1, chips=2)
    assert step == roofline.StepTime(weights_s=5, kv_s=2, flops_s=40)
    assert (step.total_s, step.limit) == (42, "FLOPs")
    assert roofline.StepTime(1, 3, 2).limit == "KV"


@given(flops=rates, bandwidth=rates, item=st.sampled_from([0.5, 1, 2, 4]))
def test_the_critical_batch_is_where_both_take_the_same_time(flops: float, bandwidth: float, item: float) -> None:
    batch = roofline.critical_batch(flops, bandwidth, item)
    read, computed = roofline.read_s(item * 1000, bandwidth), roofline.compute_s(batch * 2 * 1000, flops)
    assert computed == pytest.approx(read)


@given(hops=st.integers(1, 20), pieces=st.integers(1, 100))
def test_overlap_saves_time_but_never_beats_one_hop(hops: int, pieces: int) -> None:
    assert 1 <= roofline.overlapped_s(1.0, hops, pieces) <= hops


@given(size=rates, ratio=st.floats(1.01, 10), link=rates, codec=rates)
def test_a_codec_gains_below_its_break_even_and_costs_above(
    size: float, ratio: float, link: float, codec: float
) -> None:
    bound = roofline.codec_break_even_bytes_s(ratio, codec)
    gain = roofline.codec_gain_s(size, ratio, link, size / codec)
    if abs(link / bound - 1) > 1e-6:
        assert (gain > 0) is (link < bound)


def test_no_slice_is_made_for_what_fits_none() -> None:
    with pytest.raises(PlanError, match=r"5000 GB need 312\.5 chips, more than the largest slice of 256 has"):
        smallest_slice(5e12, 16e9)


def test_a_limit_that_no_slice_keeps_leaves_no_layout() -> None:
    served = Served(1e12, 1e12, 1e9, 1e14, layers=100, hidden=16384)
    assert list(fastest_layouts(served, hardware.find("tpu-v5e"), 1e-6)) == []


def test_hardware_has_a_source_and_sizes_and_is_found_by_any_spelling() -> None:
    for one in hardware.catalogue().values():
        assert one.source.startswith("https://")
        assert one.memory_gb
        assert 1e9 < one.bandwidth < one.flops
        assert 0.5 < one.usable_memory(one.memory) / one.memory < 1
    assert hardware.find("M4 Pro") is hardware.find("m4_pro") is hardware.catalogue()["m4-pro"]


def test_a_mac_offers_what_metal_recommends() -> None:
    mac = hardware.find("m1")
    assert mac.usable_memory(16 * 10**9) == 10_666_666_666
    assert mac.usable_memory(64 * 10**9) == 48 * 10**9


def test_unknown_hardware_is_answered_with_names_close_to_it() -> None:
    with pytest.raises(UsageError, match="no hardware called 'm4-prow'") as caught:
        hardware.find("m4-prow")
    assert "m4-pro" in caught.value.hint
    with pytest.raises(UsageError) as caught:
        hardware.find("zzz")
    assert "--list-hardware" in caught.value.hint
