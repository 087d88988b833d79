"""What one host asks its cluster in a test, over one connection, a line each: ``status``, ``ask TOKENS PROMPT``, or

``recite TOKENS PROMPT``, which does not end before it has so many tokens.

Answers are lines of JSON; what cannot be answered is ``{"error": …}``, and the next line connects anew.
"""

# ruff: noqa: T201

from __future__ import annotations

import json
import sys
from typing import Any

from edgepp.cluster.identity import load_cluster, load_identity
from edgepp.coordinator.client import CoordinatorClient
from edgepp.engine.request import GenerateOptions
from edgepp.errors import EdgeppError
from edgepp.model.text.conversation import Conversation


def answer(served: CoordinatorClient, line: str) -> dict[str, Any]:
    if line == "status":
        return served.call("status")
    verb, tokens, prompt = line.split(" ", 2)
    options = GenerateOptions(max_tokens=int(tokens), ignore_eos=verb == "recite")
    asked = served.ask(Conversation.of(prompt), options)
    text = "".join(asked)
    return {"text": text, "token_ids": asked.token_ids}


def main() -> None:
    served: CoordinatorClient | None = None
    for line in sys.stdin:
        try:
            if served is None:
                cluster = load_cluster()
                assert cluster is not None
                served = CoordinatorClient(load_identity(), cluster)
            said = answer(served, line.strip())
        except EdgeppError as error:
            said = {"error": str(error), "hint": error.hint}
            if served is not None:
                served.close()
                served = None
        print(json.dumps(said), flush=True)
    if served is not None:
        served.close()


if __name__ == "__main__":
    main()
