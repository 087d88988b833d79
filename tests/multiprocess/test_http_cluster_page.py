"""The page's cluster view in a real Chromium, over real nodes: the picture follows those that join, drain and leave."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.builders.chromium import BROWSER, Page, chromium
from tests.cluster import Machine, serving
from tests.waiting import PATIENCE_S, eventually

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
CARDS = "[...document.querySelectorAll('.card-name')].map((one) => one.textContent).join()"
STATE_OF_MINI = "document.querySelector('.machines tr:nth-child(2) td')?.textContent ?? ''"


def row_of(page: Page, text: str) -> None:
    page.until(f"{STATE_OF_MINI}.includes('{text}')", f"the second machine is {text}")


def test_the_picture_follows_nodes_that_join_are_drained_and_leave(tmp_path: Path) -> None:
    one, two = Machine(tmp_path, "one"), Machine(tmp_path, "mini")
    with (
        serving(one, Path("smollm2-135m"), "--http", "127.0.0.1:0") as (_, address),
        chromium(tmp_path) as browser,
        browser.page() as page,
    ):
        url = one.status()["http"]["url"]
        page.screen(1200, 900)
        page.open(f"{url}/#/cluster")
        page.until(f"{CARDS} === 'one'", "one machine is drawn")
        page.click("#invite")
        page.until("!!document.querySelector('.invite-qr')?.complete", "the QR code")
        command = str(page.js("document.querySelector('.invite-command code').textContent"))
        code = command.removeprefix("edgepp join ")
        with two.running("join", code, "--peer", address) as joined:
            page.until(f"{CARDS} === 'one,mini'", "the new machine is drawn")
            page.until("!document.querySelector('.invite')", "the dialogue closes when the code is used")
            page.until("document.querySelectorAll('.ribbon').length === 2", "both hold layers")
            asked = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}

            def two_stages_computed() -> bool:  # the first answers may still be those of the stage before the move
                assert httpx.post(f"{url}/v1/chat/completions", json=asked, timeout=PATIENCE_S).status_code == 200
                return bool(page.js("document.querySelectorAll('.trip-part.compute').length === 2"))

            eventually("the way of a token over both machines is drawn", two_stages_computed)
            page.click(".machines tr:nth-child(2) button")
            page.click("dialog .button.danger")
            row_of(page, "drained")
            page.screen(390, 844, phone=True)
            page.until("document.documentElement.scrollWidth <= 390", "nothing is wider than a phone")
            page.click(".machines tr:nth-child(2) button")
            row_of(page, "ready")
            joined.process.terminate()
            page.until(f"{CARDS} === 'one'", "the machine that left is gone from the picture")
        assert page.complaints() == []


def test_a_page_of_another_origin_can_neither_read_nor_change(tmp_path: Path) -> None:
    one = Machine(tmp_path, "one")
    with serving(one, Path("smollm2-135m"), "--http", "127.0.0.1:0"):
        url = one.status()["http"]["url"]
        for origin in ("http://evil.example", "null"):
            headers = {"Origin": origin}
            assert httpx.get(f"{url}/v1/cluster", headers=headers).status_code == 403
            assert httpx.post(f"{url}/v1/cluster/invite", json={}, headers=headers).status_code == 403
        other = {"Origin": "http://localhost:3000"}
        told = httpx.get(f"{url}/v1/cluster", headers=other).json()
        assert (told["administers"], told["events"]) == (False, [])
        assert httpx.post(f"{url}/v1/cluster/drain", json={"node": "one"}, headers=other).status_code == 403
        assert "ready" in httpx.get(f"{url}/v1/cluster").json()["state"]
