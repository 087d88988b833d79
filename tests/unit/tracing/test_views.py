"""Traces as they are read: one clock, the split of the time, and the file for Perfetto."""

from __future__ import annotations

import json

import pytest

from edgepp.coordinator.kept_traces import told_trace
from edgepp.errors import RemoteProtocolError
from edgepp.tracing import request_trace
from edgepp.tracing.chrome_trace import chrome_trace, chrome_traces
from edgepp.tracing.clock_offset import ClockOffset
from edgepp.tracing.request_trace import RequestTrace, StepTrace, TracedRing, TracedStage, TraceLog
from edgepp.tracing.time_split import REST, split
from edgepp.tracing.trace_view import ViewProcess, ViewSpan, processes_of, view
from edgepp.tracing.view_json import decode_view, encode_view
from edgepp.wire.frame_marks import MAX_TRACED_STAGES, computed, encoded, is_whole, stage_marks
from edgepp.wire.message_codec import encode_payload
from edgepp.wire.rank_marks import packed_times, with_ranks
from tests.builders.chrome_format import read

AHEAD_US = 7_000_000


def marks(sent_us: int, *stages: tuple[int, int, int, int, int]) -> tuple[int, ...]:
    """The trace of a frame, from absolute times of each stage's clock."""
    trace = (sent_us,)
    for received, checked, begun, done, left in stages:
        trace = (*computed(trace, received, checked, begun, done), left - done)
    return trace


def ring() -> TracedRing:
    """Stage 1 has a clock that is 7 s ahead, of which that is known within 100 us."""
    ahead = ClockOffset()
    ahead.add(0, AHEAD_US + 100, AHEAD_US + 110, 210)
    return TracedRing((TracedStage("a", "0-1", 1), TracedStage("b", "2-3", 2)), (None, ahead))


def step(kind: request_trace.StepKind, at_us: int, back: bool = True) -> StepTrace:
    """Embedded in 10 us, encoded in 10; each stage takes 10, 10, 400, 10; 100 us on each way."""
    found = StepTrace(kind, at_us, 1, at_us / 1e6, (at_us + 10) / 1e6, (at_us + 20) / 1e6, ring=ring())
    if back:
        one = [at_us + us for us in (120, 130, 140, 540, 550)]
        two = [AHEAD_US + at_us + us for us in (650, 660, 670, 1070, 1080)]
        found.marks = marks(at_us + 20, (*one,), (*two,))  # type: ignore[arg-type]
        found.received_s, found.back_s = (at_us + 1180) / 1e6, (at_us + 1190) / 1e6
    return found


def trace_of(*steps: StepTrace) -> RequestTrace:
    trace = RequestTrace("req_1", 0.0, ["chatcmpl-1"])
    for one in steps:
        trace.step(one)
        if one.back_s:
            trace.span("head", one.back_s + 10e-6, one.back_s + 60e-6)
            trace.span("sample", one.back_s + 60e-6, one.back_s + 70e-6, 1)
    return trace


def test_times_of_a_stage_are_moved_to_the_coordinators_clock() -> None:
    spans = view(trace_of(step("decode", 1000))).spans
    second = [(span.name, span.begin_us, span.took_us) for span in spans if span.process == 2]
    assert second == [
        ("way to stage 1", 1550, 100),
        ("receive", 1650, 10),
        ("queue", 1660, 10),
        ("compute decode", 1670, 400),
        ("encode", 2070, 10),
    ]


def test_no_stage_works_on_a_frame_before_it_was_sent_or_after_it_came_back() -> None:
    lying = step("decode", 1000)
    lying.marks = marks(1020, (5, 6, 7, 8, 9), (2**50, 2**50, 2**50, 2**50, 2**50))
    for span in view(trace_of(lying)).spans:
        assert 1000 <= span.begin_us <= span.begin_us + span.took_us <= 2260


def of_ranks(*other_us: int) -> StepTrace:
    """A step whose stage 0 has two ranks; rank 1 tells ``other_us`` by a clock that is 5 s ahead."""
    found = step("decode", 1000)
    first = packed_times([us * 1000 for us in (1140, 1240, 1340, 1440, 1540)])
    other = packed_times([(5_000_000 + us) * 1000 for us in other_us])
    found.rank_marks = with_ranks(b"", 0, [first, other], 1)
    return found


def test_each_rank_has_its_halves_and_sums_on_the_coordinators_clock() -> None:
    trace = trace_of(of_ranks(1145, 1330, 1350, 1430))
    found = view(trace)
    [_, first, _, other] = found.processes
    assert other.name == "stage 0, layers 0-1, rank 1"
    assert first.clock_error_us == 0
    assert 0 < other.clock_error_us <= 100
    spans = [span for span in found.spans if span.track == "rank"]
    assert [(one.process, one.name) for one in spans] == [
        *((1, name) for name in ("attention", "sum", "MLP", "sum")),
        *((3, name) for name in ("attention", "sum", "MLP")),
    ]
    assert [(one.begin_us, one.took_us) for one in spans[:4]] == [(at, 100) for at in (1140, 1240, 1340, 1440)]
    for one, begin_us in zip(spans[4:], (1145, 1330, 1350), strict=True):
        assert abs(one.begin_us - begin_us) <= other.clock_error_us
    times = split(found)
    assert times.ranks_us == {first.name: (200, 200), other.name: (265, 20)}
    assert sum(times.prompt_us.values()) == pytest.approx(2260)
    assert decode_view(json.loads(json.dumps(encode_view(found)))) == found
    assert len([one for one in read(json.dumps(chrome_trace(found)))["traceEvents"] if one.get("cat") == "rank"]) == 7


def test_a_rank_whose_times_contradict_rank_0_is_left_out() -> None:
    spans = view(trace_of(of_ranks(1145, 1330, 1350, 900_000))).spans
    assert {one.process for one in spans if one.track == "rank"} == {1}


def test_the_error_of_a_clock_is_the_largest_of_all_parts_of_a_trace() -> None:
    known = [ViewProcess("coordinator"), ViewProcess("a", clock_error_us=7), ViewProcess("b", clock_error_us=3)]
    worse = [ViewProcess("coordinator"), ViewProcess("a", clock_error_us=5), ViewProcess("b", clock_error_us=-1)]
    found = processes_of(known, [*worse, ViewProcess("c", clock_error_us=9)])
    assert [one.clock_error_us for one in found] == [0, 7, -1, 9]


def test_times_of_ranks_count_as_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_trace, "MAX_RECORDS_PER_REQUEST", 200)
    trace = RequestTrace("req_1", 0.0)
    for at in range(300):
        one = step("decode", 1000 * at)
        one.rank_marks = bytes(700)
        trace.step(one)
    assert 60 < len(trace.steps) < 120
    assert trace.num_dropped == 300 - len(trace.steps)


def test_parts_add_up_to_the_time_from_token_to_token() -> None:
    found = split(view(trace_of(step("prefill", 0), step("decode", 2000), step("decode", 4000))))
    assert found.num_tokens == 3
    assert sum(found.prompt_us.values()) == pytest.approx(1260)
    assert sum(found.answer_us.values()) == pytest.approx(4000)
    assert found.answer_us["stage 1, layers 2-3: compute"] == pytest.approx(800)
    assert found.answer_us["way to stage 1"] == pytest.approx(200)
    assert found.answer_us[REST] == pytest.approx(2 * 750)


def test_stages_that_work_at_the_same_time_share_it() -> None:
    behind = step("guess", 400)
    found = split(view(trace_of(step("prefill", 0), behind)))
    assert sum(found.prompt_us.values()) + sum(found.answer_us.values()) == pytest.approx(1660)
    first = found.prompt_us["stage 0, layers 0-1: compute"]
    assert first < 800 - 270 / 2  # of 800 us, stage 1 worked on the step before in 270


def test_a_guess_is_right_or_void_and_void_steps_have_no_trip() -> None:
    trace = trace_of(step("decode", 0), step("guess", 100), step("guess", 200, back=False))
    trace.steps[1].position, trace.steps[2].position = 8, 9
    trace.settle_guesses(8, right=True)
    trace.settle_guesses(9, right=False)
    assert [one.verdict for one in trace.steps] == ["", "right", "void"]
    names = [span.name for span in view(trace).spans if span.step == 2]
    assert names == ["embed guess", "encode"]


def test_the_file_is_in_the_format_and_tells_the_clock_error() -> None:
    trace = trace_of(step("prefill", 0), step("guess", 400), step("decode", 3000), step("guess", 3100, back=False))
    trace.span("write", 1300e-6, 1400e-6, 40)
    trace.span("write", 1350e-6, 1450e-6, 40)
    trace.event("admitted", 10e-6, prompt_tokens=3)
    found = read(json.dumps(chrome_trace(view(trace))))
    assert found["metadata"]["clock_error_us"] == pytest.approx(
        {"coordinator": 0, "stage 0, layers 0-1": 0, "stage 1, layers 2-3": 100}, abs=1
    )
    arrows = [event for event in found["traceEvents"] if event["ph"] == "s"]
    assert len(arrows) == 3


def test_several_requests_are_in_one_file_each_with_its_own_processes_and_at_its_own_time() -> None:
    first, later = (view(trace_of(step("prefill", 0), step("decode", 3000))) for _ in range(2))
    alone = read(json.dumps(chrome_trace(first)))["traceEvents"]
    both = read(json.dumps(chrome_traces([(first, 0), (later, 500)])))
    assert [one["request"] for one in both["metadata"]["requests"]] == ["req_1", "req_1"]
    assert len(both["traceEvents"]) == 2 * len(alone)
    begins = [[one["ts"] for one in both["traceEvents"] if one["pid"] == pid and "ts" in one] for pid in (1, 4)]
    assert [at_us + 500 for at_us in begins[0]] == begins[1]
    names = {one["args"]["name"] for one in both["traceEvents"] if one["name"] == "process_name"}
    assert "coordinator: req_1" in names
    assert read(json.dumps(chrome_traces([])))["traceEvents"] == []


def test_a_view_passes_as_json_in_parts_and_malformed_ones_are_refused() -> None:
    trace = trace_of(*(step("decode", 2000 * i) for i in range(9)))
    trace.event("ended", 1.0, how="stop", tokens=9)
    whole, parts, first = view(trace), [], 0
    while True:
        part = decode_view(json.loads(json.dumps(encode_view(view(trace, first, 4)))))
        parts.append(part)
        if part.next is None:
            break
        first = part.next
    assert [span for part in parts for span in part.spans] == whole.spans
    assert [event for part in parts for event in part.events] == whole.events
    good = json.loads(json.dumps(encode_view(whole)))
    for name, bad in {
        "spans": [[9, "a", "b", 1, 2, 3, 4]],
        "processes": [["a"]],
        "events": [[1, 2, 3]],
        "next": "x",
        "request": 5,
    }.items():
        with pytest.raises(RemoteProtocolError):
            decode_view(good | {name: bad})


def test_a_log_keeps_the_newest_and_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    log = TraceLog(3)
    made = [log.begin(f"r{i}", 0.0) for i in range(5)]
    assert [trace.id for trace in log] == ["r4", "r3", "r2"]
    assert made[3] is not None
    made[3].aliases.append("chatcmpl-3")
    assert log.find("chatcmpl-3") is made[3]
    assert log.find("r0") is None
    assert TraceLog(0).begin("r", 0.0) is None
    monkeypatch.setattr(request_trace, "MAX_RECORDS_PER_REQUEST", 2)
    for _ in range(5):
        made[3].event("x", 0.0)
    assert (made[3].num_records, made[3].num_dropped) == (2, 3)
    monkeypatch.setattr(request_trace, "MAX_RECORDS", 1)
    log.begin("r5", 0.0)
    assert [trace.id for trace in log] == ["r5", "r4"]


def test_marks_of_stages_travel_in_a_frame() -> None:
    trace = encoded(computed((5,), 100, 110, 115, 400))
    assert is_whole(trace, 1)
    (found,) = stage_marks(trace)
    assert found[:4] == (100, 110, 115, 400)
    assert found.encoded_us > 400
    assert is_whole((), 3)
    assert not is_whole((5, 1), 1)
    assert min(computed((5,), 100, 90, 80, 70)) >= 0  # a clock that goes back makes no number that a header refuses


def test_a_page_of_a_long_ring_fits_into_a_reply_and_all_pages_are_the_trace() -> None:
    """2,000 steps over 32 stages at a time had 16 MB and took the coordinator's thread 5 s."""
    clock = ClockOffset()
    clock.add(0, 100, 110, 210)
    long = TracedRing(tuple(TracedStage("n" * 128, f"{n}", n) for n in range(MAX_TRACED_STAGES)), (clock,) * 32)
    log = TraceLog()
    trace = log.begin("req_1", 0.0)
    assert trace is not None
    for at in range(200):
        trace.step(
            StepTrace("decode", at, 1, at, at + 0.1, at + 0.2, (5, *[9] * 5 * 32), at + 0.8, at + 0.9, ring=long)
        )
    told: list[ViewSpan] = []
    first: int | None = 0
    while first is not None:
        reply = told_trace(log, "", {"request": "req_1", "first": first})
        assert len(encode_payload(reply)) < 1 << 20
        told += decode_view(reply).spans
        first = reply["next"]
    assert told == view(trace).spans
