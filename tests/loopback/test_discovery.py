"""Coordinators announced and found by multicast DNS on the loopback interface."""

from __future__ import annotations

import logging
import threading

import pytest
from zeroconf import Zeroconf

from edgepp.cluster.discovery import mdns_responder
from edgepp.cluster.discovery.mdns import Announcer, Browser, discover
from tests.waiting import PATIENCE_S

CLUSTER, NODE = "0123456789abcdef", "fedcba9876543210"


def test_a_coordinator_is_heard_over_loopback_and_no_thread_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mdns_responder, "_open_zeroconf", lambda: Zeroconf(["127.0.0.1"]))
    before = set(threading.enumerate())
    announcer = Announcer(CLUSTER, NODE, "mini", 5720)
    try:
        announcer.update([3, 4])
        found = discover(lambda record: record.node == NODE and record.invitations == (3, 4), PATIENCE_S)
    finally:
        announcer.close()
    assert [(record.cluster, record.name) for record in found] == [(CLUSTER, "mini")]
    assert set(threading.enumerate()) <= before  # other threads may have ended meanwhile


def _broken(*_: object, **__: object) -> None:
    raise OSError(98, "Address already in use")


def test_without_multicast_one_line_says_so_and_the_program_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("zeroconf.Zeroconf", _broken)
    with caplog.at_level(logging.WARNING):
        announcer, browser = Announcer(CLUSTER, NODE, "mini", 5720), Browser()
        announcer.update([7])
        announcer.refresh()
        assert browser.find(lambda _: True, 0.2) == ()
        announcer.close()
        browser.close()
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) <= 2  # one each; a thread that was closed first has not tried
    assert any("Address already in use" in message and "--peer HOST:PORT" in message for message in messages)
