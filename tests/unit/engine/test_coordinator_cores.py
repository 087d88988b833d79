from __future__ import annotations

import platform

import pytest

from edgepp.cluster.discovery.network_interfaces import usable_addresses
from edgepp.engine.coordinator_cores import is_here, spare_step_pays
from tests.builders.stages import stage_info


@pytest.mark.parametrize(
    ("stages", "decode_s", "token_s", "head_s", "pays"),
    [
        (2, 0.0055, 0.0014, 0.002, False),
        (4, 0.0027, 0.0007, 0.002, True),
        (2, 0.0055, 0.0014, 0.004, True),
        (8, 0.050, 0.005, 0.006, False),
    ],
)
def test_a_step_more_than_stages_pays_where_the_rest_takes_longer_than_to_read_the_weights_of_a_stage(
    stages: int, decode_s: float, token_s: float, head_s: float, pays: bool
) -> None:
    one = stage_info(decode_s=decode_s, prefill_s=token_s, hop_s=0.0001)
    assert spare_step_pays([one] * stages, head_s) is pays


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost", platform.node()])
def test_a_stage_at_an_address_of_this_machine_is_here(host: str) -> None:
    assert is_here(stage_info(address=f"{host}:5700"))


def test_a_stage_at_another_address_is_not_here() -> None:
    assert not is_here(stage_info(address="192.0.2.7:5700"))
    assert not is_here(stage_info(address="another.example:5700"))
    assert all(is_here(stage_info(address=f"{host}:5700")) for host in usable_addresses() if ":" not in host)
