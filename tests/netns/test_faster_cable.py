"""A cable is plugged in beside a slow network: hidden states take the cable, also those of an answer under way."""

from __future__ import annotations

from tests.netns.members import MODEL, Asker, Daemon, Status, answers_with, invite, join
from tests.netns.net import Lan

SLOW_KBIT_PER_S = 8000
TOKENS = 64


def link_bytes_per_s(state: Status) -> float:
    """Rate of the link from the first machine into the second."""
    return float(state["stages"][-1].get("link_bytes_per_s") or 0.0)


def test_a_cable_is_used_as_soon_as_it_is_there_and_the_slow_network_when_it_is_gone(lan: Lan) -> None:
    one, two = lan.host("one"), lan.host("two")
    for host in (one, two):
        host.slow_down(SLOW_KBIT_PER_S)
    served = Daemon(one, "serve", "-m", MODEL, "--threads", "1", "--exact", "--http", "off")
    served.expect("listening")
    joined = join(two, invite(one))
    joined.expect("joined")
    here, there = Asker(one), Asker(two)
    both = answers_with(["one", "two"])
    before = here.wait("the slow network is measured", lambda state: both(state) and link_bytes_per_s(state))
    assert link_bytes_per_s(before) < 2 * SLOW_KBIT_PER_S * 125
    there.tell(f"recite {TOKENS} Once upon a time")
    expected = there.hear()["token_ids"]
    assert len(expected) == TOKENS

    there.tell(f"recite {TOKENS} Once upon a time")
    here.wait("an answer is under way", lambda state: state["engine"].get("live"))
    one.cable(two)
    state = here.wait("the cable", lambda now: both(now) and link_bytes_per_s(now) > 10 * SLOW_KBIT_PER_S * 125)
    assert there.hear()["token_ids"] == expected
    assert "PipelineLost" not in {event["kind"] for event in state["events"]}
    assert {stage["pid"] for stage in state["stages"]} == {stage["pid"] for stage in before["stages"]}

    one.uncable()
    here.wait("the network", lambda now: both(now) and 0 < link_bytes_per_s(now) < 2 * SLOW_KBIT_PER_S * 125)
    assert there.ask("Once upon a time", 8)["token_ids"]
    joined.end()
    served.end()
