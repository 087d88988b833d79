"""The formulas on numbers that can be checked in the head; what they owe their sources is in test_origin_figures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepp.errors import PlanError, UsageError
from edgepp.layer_range import LayerRange
from edgepp.model.catalogue.cards import catalogue as cards
from edgepp.placement.values import ModelSize
from edgepp.plan import hardware, roofline
from edgepp.plan.chip_slices import SliceModel, fastest_steps, read_precision, read_slices, smallest_slice
from edgepp.plan.costs import Costs
from edgepp.plan.machines import Efficiency, Machine, Model, Stage

rates = st.floats(1e3, 1e15)
V5E = hardware.find("v5e")


def test_parameters_agree_with_what_cards_of_16_bits_store() -> None:
    for card in cards().values():
        if card.bits is None:
            norms = card.layers * sum(card.layer_vectors().values()) + card.hidden
            assert 2 * (card.num_weights() + norms) == card.bytes_total


def test_a_step_is_kv_and_the_longer_of_weights_and_flops() -> None:
    step = roofline.decode_step(4, 100, 1000, 10, bytes_per_s=100, flops_per_s=1, chips=2)
    assert step == roofline.StepTime(weights_s=5, kv_s=2, arithmetic_s=40)
    assert (step.total_s, step.limit) == (42, "FLOPs")
    assert roofline.StepTime(1, 3, 2).limit == "KV"


@given(flops=rates, bandwidth=rates, item=st.sampled_from([0.5, 1, 2, 4]))
def test_the_critical_batch_is_where_both_take_the_same_time(flops: float, bandwidth: float, item: float) -> None:
    batch = roofline.critical_batch(flops, bandwidth, item)
    read, computed = roofline.read_s(item * 1000, bandwidth), roofline.compute_s(batch * 2 * 1000, flops)
    assert computed == pytest.approx(read)


@given(
    layer_bytes=st.integers(10**6, 10**9), kv=st.integers(1, 10**5), batch=st.integers(1, 64),
    stream=st.floats(1e9, 1e12), flops=st.floats(1e10, 1e14),
)  # fmt: skip
def test_a_stage_of_a_gpu_at_peak_takes_a_roofline_step(
    layer_bytes: int, kv: int, batch: int, stream: float, flops: float
) -> None:
    """The planner's step on one machine without overhead is the roofline's, where one row fits under the weights."""
    size = ModelSize(10, 1000, layer_bytes, ends_bytes=0, kv_bytes=kv, layer_flops=2 * layer_bytes)
    model = Model("toy", size, head_bytes=0, head_flops=0, attention_flops=0, context=4096)
    machine = Machine("a", stream, flops, Efficiency(overlap=1.0, hop_s=0.0, sample_s=0.0))
    planned = Costs(model, [Stage(machine, LayerRange(0, 10))], {}, machine).stage_s(0, batch, batch * 100, 0)
    step = roofline.decode_step(batch, 100 * 10 * kv, 10 * layer_bytes, 10 * layer_bytes, stream, flops, chips=1)
    assert planned.busy_s == pytest.approx(step.total_s)
    assert (planned.weights_s, planned.kv_s, planned.arithmetic_s) == pytest.approx(
        (step.weights_s, step.kv_s, step.arithmetic_s)
    )


def test_no_slice_is_made_for_what_fits_none() -> None:
    with pytest.raises(PlanError, match=r"5000 GB need 312\.5 chips, more than the 256 of slice 16x16"):
        smallest_slice(5e12, V5E, read_slices(V5E))


def test_a_limit_that_no_slice_keeps_leaves_no_layout() -> None:
    model = SliceModel(cards()["llama-3.3-70b-bf16"], read_precision("bf16", V5E), 8192)
    assert list(fastest_steps(model, V5E, 1e-6, read_slices(V5E))) == []


@pytest.mark.parametrize(
    ("text", "message"), [("fp8", "is not a precision"), ("", "is not a precision"), ("int8:int4", "is not a prec")]
)
def test_a_precision_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_precision(text, V5E)


def test_slices_and_rates_that_are_not_known_are_refused() -> None:
    with pytest.raises(UsageError, match="no slices of m4-pro are known") as caught:
        read_slices(hardware.find("m4-pro"))
    assert "tpu-v5e" in caught.value.hint
    with pytest.raises(UsageError, match="has no slice 3x3"):
        read_slices(V5E, "3x3")
    with pytest.raises(UsageError, match="in int8 are known"):
        read_precision("bf16:int8", hardware.find("m4-pro"))


def test_hardware_has_a_source_and_sizes_and_is_found_by_any_spelling() -> None:
    for one in hardware.catalogue().values():
        assert one.source.startswith("https://")
        assert one.memory_gb
        assert 1e9 < one.memory_bytes_per_s < one.flops_per_s
        assert 0.5 < one.usable_memory(one.memory_bytes) / one.memory_bytes < 1
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
