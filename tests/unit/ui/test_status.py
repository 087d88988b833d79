from __future__ import annotations

import io
from typing import Any

from edgepp.ui.screen import Screen
from edgepp.ui.status import tables
from tests.builders.cluster_state import home_lab

_REASON = "the stage on node studio cannot reach port 5701 of the stage on node laptop"
_LINK = {"sender": "studio", "receiver": "laptop", "reason": _REASON}


def shown(**changes: Any) -> str:
    state = home_lab() | {"plan_version": 3, "http": None, "sleep_lock": None, "sums": [], "avoided_links": []}
    state["answers"] |= {"last_decode_tokens_per_s": None}
    for one in (*state["nodes"], *state["stages"]):
        one |= {"sleep_lock": None, "ranks": [], "resident_bytes": 0}
    screen, file = Screen(), io.StringIO()
    screen.file = file
    screen.show(tables(state | changes))
    return file.getvalue()


def test_a_link_that_is_avoided_is_told_while_answers_go_another_way() -> None:
    line = f"avoided for now: the link from studio to laptop, since {_REASON}\n"
    assert line in shown(avoided_links=[_LINK])
    assert "avoided" not in shown()


def test_the_reason_for_which_answers_wait_is_told_once() -> None:
    assert shown(reason=f"{_REASON}; one hint", avoided_links=[_LINK]).count(_REASON) == 1
