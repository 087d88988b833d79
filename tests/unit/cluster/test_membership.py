from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgepp.cluster.membership import CLOSED_S, GONE_S, SUSPECT_S, Member, MemberEvent, MemberPhase, Membership
from tests.builders.members import beat, facts, loaded

NODE = "0123456789abcdef"


def enrolled(now_s: float = 0.0) -> Membership:
    members = Membership()
    assert members.enrol(NODE, "k", facts(), b"r", "10.0.0.2", now_s) == ""
    return members


def only(members: Membership) -> Member:
    (member,) = members
    return member


def test_a_member_is_ready_when_it_has_loaded_suspect_when_silent_and_gone_at_last() -> None:
    members = enrolled()
    assert only(members).phase is MemberPhase.JOINED
    members.assigned(NODE, complete=True)
    assert only(members).phase is MemberPhase.READY
    assert members.tick(SUSPECT_S) == []
    assert [m.phase for m in members.tick(SUSPECT_S + 0.1)] == [MemberPhase.SUSPECT]
    assert [m.phase for m in members.tick(GONE_S + 0.1)] == [MemberPhase.GONE]
    assert members.present == ()


def test_a_member_that_closed_its_connection_is_gone_sooner() -> None:
    members = enrolled()
    members.closed(NODE)
    assert [m.phase for m in members.tick(CLOSED_S + 0.1)] == [MemberPhase.SUSPECT, MemberPhase.GONE]
    back = enrolled()
    back.closed(NODE)
    assert back.heard(NODE, beat(), 0, b"r", "10.0.0.2", 1.0)
    assert [m.phase for m in back.tick(1.0 + CLOSED_S + 0.1)] == [MemberPhase.SUSPECT]


def test_a_member_whose_stage_process_has_ended_too_is_gone_at_once() -> None:
    members = enrolled()
    members.closed(NODE, ended=True)
    members.closed(NODE)
    assert [m.phase for m in members.tick(0.1)] == [MemberPhase.SUSPECT, MemberPhase.GONE]
    assert only(members).gone_reason == "closed its connection"
    assert members.enrol(NODE, "k", facts(), b"r", "10.0.0.2", 0.2) == ""
    assert members.tick(0.3) == []


def test_a_member_that_is_heard_again_has_not_ended() -> None:
    members = enrolled()
    members.closed(NODE, ended=True)
    assert members.heard(NODE, beat(), 0, b"r", "10.0.0.2", 0.1)
    assert members.tick(0.2) == []


def test_a_member_that_was_silent_keeps_its_loaded_layers() -> None:
    members = enrolled()
    members.loaded(NODE, 0, loaded())
    members.tick(SUSPECT_S + 1)
    assert members.heard(NODE, beat(), 0, b"r", "10.0.0.2", SUSPECT_S + 2)
    assert (only(members).phase, only(members).slot(0)) == (MemberPhase.JOINED, loaded())
    members.assigned(NODE, complete=True)
    assert only(members).phase is MemberPhase.READY


def test_a_member_that_is_gone_must_enrol_again() -> None:
    members = enrolled()
    members.tick(GONE_S + 1)
    members.tick(GONE_S + 1)
    assert not members.heard(NODE, beat(), 0, b"r", "10.0.0.2", GONE_S + 2)
    assert members.enrol(NODE, "k", facts(), b"r", "10.0.0.2", GONE_S + 2) == ""
    assert only(members).phase is MemberPhase.JOINED


def test_a_second_process_with_the_same_id_is_refused_while_the_first_is_heard_from() -> None:
    members = enrolled()
    reason = members.enrol(NODE, "k", facts(incarnation=2), b"x", "10.0.0.9", 1.0)
    assert "mini at 10.0.0.2" in reason
    assert "copied" in reason
    assert only(members).facts.incarnation == 1
    members.tick(SUSPECT_S + 0.1)
    assert members.enrol(NODE, "k", facts(incarnation=2), b"x", "10.0.0.9", 3.0) == ""
    assert only(members).facts.incarnation == 2
    assert not members.heard(NODE, beat(1), 0, b"r", "10.0.0.2", 3.1)


def test_a_restart_has_nothing_loaded() -> None:
    members = enrolled()
    members.loaded(NODE, 0, loaded())
    members.left(NODE)
    members.enrol(NODE, "k", facts(incarnation=2), b"x", "10.0.0.2", 1.0)
    assert only(members).loaded == ()


def test_a_heartbeat_from_another_address_asks_for_a_new_enrolment() -> None:
    members = enrolled()
    members.loaded(NODE, 0, loaded())
    assert not members.heard(NODE, beat(), 0, b"r", "10.0.0.7", 0.5)
    assert members.enrol(NODE, "k", facts(addresses="10.0.0.7"), b"r", "10.0.0.7", 0.6) == ""
    assert (only(members).host, only(members).slot(0)) == ("10.0.0.7", loaded())


def test_a_heartbeat_by_another_connection_asks_for_a_new_enrolment() -> None:
    members = enrolled()
    members.loaded(NODE, 0, loaded())
    version = members.version
    assert not members.heard(NODE, beat(), 0, b"r2", "10.0.0.2", 0.5)
    assert only(members).route == b"r"
    assert members.enrol(NODE, "k", facts(), b"r2", "10.0.0.2", 0.6) == ""
    assert (only(members).route, only(members).slot(0)) == (b"r2", loaded())
    assert members.version > version
    assert members.heard(NODE, beat(), 0, b"r2", "10.0.0.2", 0.7)


def test_the_version_grows_only_with_changes() -> None:
    members = enrolled()
    version = members.version
    for now_s in (0.5, 1.0, 1.5):
        members.heard(NODE, beat(), 0, b"r", "10.0.0.2", now_s)
        members.tick(now_s)
    members.enrol(NODE, "k", facts(), b"r", "10.0.0.2", 1.6)
    assert members.version == version
    members.enrol(NODE, "k", facts(memory_bytes=1), b"r", "10.0.0.2", 1.7)
    assert members.version == version + 1


def test_the_coordinators_own_sleep_is_not_silence_of_the_members() -> None:
    members = enrolled()
    members.forgive(60.0)
    assert members.tick(60.5) == []


@given(st.lists(st.sampled_from(list(MemberEvent)), max_size=20))
def test_no_event_leads_out_of_the_table(events: list[MemberEvent]) -> None:
    members = enrolled()
    for event in events:
        version, before = members.version, only(members).phase
        members._move(NODE, event)
        after = only(members).phase
        assert (members.version > version) == (after is not before)
        if before is MemberPhase.GONE:
            assert after is MemberPhase.GONE or event is MemberEvent.ENROLLED
