"""opencode, as it is, with a two-stage cluster of real weights."""

from __future__ import annotations

from pathlib import Path

from tests.builders.opencode import Served, opencode_turn
from tests.multiprocess.http_cluster import MODEL, HttpCluster

# The prompt and all tools of opencode have about 7,000 tokens; prompt and answer of this model may have 4,096.
SMALL = {"prompt": "You are brief.", "tools": {"*": False, "read": True}, "temperature": 0}


def test_a_question_is_answered(http_cluster: HttpCluster, tmp_path: Path) -> None:
    (model,) = http_cluster.get("/v1/models").json()["data"]
    served = Served(http_cluster.url, MODEL, model["max_model_len"], output=32)
    turn = opencode_turn(served, tmp_path, "What does password.txt say?", SMALL)
    assert turn.text or turn.tools
    http_cluster.wait_until_idle()
