"""What one host does in a test of discovery: ``announce CLUSTER NODE PORT`` or ``browse``, steered by lines.

`announce`: a line of numbers opens these invitations. `browse`: ``SECONDS CLUSTER [ADDRESS ...]`` answers with the
records heard of that cluster that have these addresses, as JSON. Both: ``refresh`` begins anew.
"""

# ruff: noqa: T201

from __future__ import annotations

import json
import sys

from edgepp.cluster.discovery.mdns import Announcer, Browser


def announce(cluster: str, node: str, port: str) -> None:
    announcer = Announcer(cluster, node, "host", int(port))
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() == "refresh":
            announcer.refresh()
        else:
            announcer.update([int(number) for number in line.split()])
    announcer.close()


def browse() -> None:
    browser = Browser()
    for line in sys.stdin:
        if line.strip() == "refresh":
            browser.refresh()
            continue
        wait_s, cluster, *address = line.split()
        records = browser.find(
            lambda one: one.cluster == cluster and set(address) <= {a.host for a in one.addresses},  # noqa: B023
            float(wait_s),
        )
        answer = [[[a.host for a in one.addresses], one.addresses[0].port, list(one.invitations)] for one in records]
        print(json.dumps(answer), flush=True)
    browser.close()


if __name__ == "__main__":
    if sys.argv[1] == "announce":
        announce(*sys.argv[2:])
    else:
        browse()
