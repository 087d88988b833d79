"""`edgepp use MODEL` in a cluster of two machines: both load the other model, and answers under way end first."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from edgepp.model.random_checkpoint import TINY
from tests.builders.checkpoints import Checkpoints
from tests.netns.members import MODEL, Asker, Daemon, Status, answers_with, chat, invite, join, members
from tests.netns.net import Host, Lan
from tests.waiting import PATIENCE_S

PACE_TOKENS = 24
ANSWER_S = 15.0
"""What the answer under way takes about: longer than a command that asks for the change, and shorter than its wait."""
HTTP_SCRIPT = """
import sys, urllib.request
asked = urllib.request.Request(sys.argv[1], sys.argv[2].encode(), {"Content-Type": "application/json"})
print(urllib.request.urlopen(asked, timeout=60).read().decode())
"""


def http_chat(host: Host, url: str, prompt: str) -> dict[str, Any]:
    """What /v1/chat/completions answers to a program on ``host``."""
    asked = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 8, "temperature": 0}
    done = host.run(sys.executable, "-c", HTTP_SCRIPT, f"{url}/v1/chat/completions", json.dumps(asked))
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def runs(model: str, layers: int) -> Callable[[Status], bool]:
    """Whether a cluster answers with ``model``, whose layers are on both machines."""
    both = answers_with(["one", "two"])
    return lambda state: both(state) and state["model"] == model and state["stages"][-1]["layers"][1] == layers


def test_both_machines_load_the_other_model_after_answers_under_way_have_ended(
    lan: Lan, checkpoints: Checkpoints
) -> None:
    one, two = lan.host("one"), lan.host("two")
    tiny = str(checkpoints(replace(TINY, context=2048, layers=6)))
    room = ("--memory", "2GB", "--exact")
    served = Daemon(one, "serve", "-m", MODEL, "--threads", "1", "--http", "127.0.0.1:0", *room)
    url = served.expect("listening")["http"]
    joined = join(two, *room[:2], invite(one))
    joined.expect("joined")
    here, there = Asker(one), Asker(two)
    before = members(here.wait("both run the first model", runs(MODEL, 30)))

    began_s = time.monotonic()
    there.tell(f"recite {PACE_TOKENS} Once upon a time")
    assert len(there.hear()["token_ids"]) == PACE_TOKENS
    tokens = min(1000, int(PACE_TOKENS * ANSWER_S / (time.monotonic() - began_s)))
    there.tell(f"recite {tokens} Once upon a time")
    here.wait("an answer is under way", lambda state: state["engine"].get("live"))
    change = one.popen_edgepp("use", tiny, "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    here.wait("the change waits for the answer", lambda state: (state["change"] or {}).get("state") == "waiting")
    assert here.status()["model"] == MODEL
    heard = there.hear()
    assert len(heard.get("token_ids", ())) == tokens, heard
    said, complaints = change.communicate(timeout=PATIENCE_S)
    assert change.returncode == 0, complaints
    told = [json.loads(line) for line in said.splitlines()]
    assert (told[-1]["event"], told[-1]["model"], told[-1]["changed"]) == ("ready", tiny, True)

    after = members(here.wait("both run the second model", runs(tiny, 6)))
    assert all(member.state == "ready" and len(member.layers) == 1 for member in after.values())
    assert {name: member.pids for name, member in after.items()} != {
        name: member.pids for name, member in before.items()
    }
    answered = http_chat(one, url, "Say hi")
    assert (answered["model"], answered["usage"]["completion_tokens"] > 0) == (tiny, True)
    assert chat(two, "Say hi", 8)["token_ids"]

    back = one.edgepp("use", MODEL, timeout=PATIENCE_S)
    assert back.returncode == 0, back.stderr
    here.wait("both run the first model again", runs(MODEL, 30))
    assert http_chat(one, url, "What is the capital of France?")["choices"][0]["message"]["content"]
    refused = two.edgepp("use", tiny)
    assert refused.returncode != 0
    assert "run it on one" in refused.stderr
    joined.end()
    served.end()
