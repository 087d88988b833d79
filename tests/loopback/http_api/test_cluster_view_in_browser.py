"""The cluster view in a real Chromium, over states that a test writes: what no cluster shows when a test wants it.

Real nodes that join, drain and leave: tests/multiprocess/test_http_cluster_page.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgepp.http_api.api_keys import add_key
from edgepp.http_api.http_options import HttpOptions
from edgepp.plan.bench_history import HistoryEntry, Rate, append_entry
from tests.builders.chromium import BROWSER, Chromium, Page
from tests.builders.cluster_state import STATUS, home_lab
from tests.builders.page_acts import PHONE, faults, prefer
from tests.builders.page_server import PageServer, page_server

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
SHOWN = "document.querySelector('.cluster')?.innerText ?? ''"
PROGRESS = "document.querySelector('.cluster-progress')"
RUN = "document.querySelector('.plan-run')"


def shown(page: Page, server: PageServer) -> None:
    page.open(f"{server.url}/#/cluster")
    page.until("document.querySelectorAll('.card').length > 0", "the machines are drawn")
    page.until("document.querySelectorAll('.plan-answer > *').length > 0", "the planner has answered")


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_axe_finds_no_serious_fault(
    browser: Chromium, server: PageServer, colours: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPP_HOME", str(tmp_path))
    rates = {"decode_tokens_per_s": Rate(30.5, 30.0, 31.0), "prefill_tokens_per_s": Rate(300.0, 290.0, 310.0)}
    for commit, busy in (("1234567", True), ("89abcde", False)):
        append_entry(
            tmp_path, HistoryEntry("2025-11-28 09:00 +0000", "0.1.0", commit, "cpu", "m", "2 stages", busy, rates)
        )
    server.service.state = {**home_lab(), "change": {"model": "x", "state": "fetching", "progress": 0.4}}
    with browser.page() as page:
        page.screen(1280, 1600)
        shown(page, server)
        prefer(page, colours)
        page.until("document.querySelectorAll('.history-run').length === 2", "the history is drawn")
        page.click(".history summary")
        assert faults(page) == []
        page.click("#invite")
        page.until("!!document.querySelector('.invite-qr')?.complete", "the invitation")
        assert faults(page) == []
        page.press("Escape")
        page.until("!document.querySelector('dialog')")
        page.screen(*PHONE, phone=True)
        page.until("document.querySelector('.cluster-picture').viewBox.baseVal.width < 390", "the picture is narrow")
        page.until(f"document.documentElement.scrollWidth <= {PHONE[0]}")
        page.until(f"document.querySelector('.cluster').scrollWidth <= {PHONE[0]}")
        assert faults(page) == []
        assert page.complaints() == []


def test_the_model_is_changed_with_progress_and_a_failure_is_told(browser: Chromium, server: PageServer) -> None:
    server.service.state = STATUS
    with browser.page() as page:
        page.screen(1280, 1600)
        shown(page, server)
        select = "document.querySelector('.plan select')"
        page.js(f"{select}.value = 'llama-3.2-1b-4bit'; {select}.dispatchEvent(new Event('change'))")
        page.until(f"!{RUN}.hidden && !{RUN}.disabled", "the model can be changed")
        page.click(".plan-run")
        page.until("document.querySelector('dialog')?.innerText.includes('Run llama-3.2-1b-4bit?')", "a question first")
        assert server.service.model.name == "smollm2-135m"
        page.click("dialog .primary")
        page.until("document.querySelector('.toasts').innerText.includes('changes to llama-3.2-1b-4bit')")
        assert server.service.model.name == "llama-3.2-1b-4bit"
        change = {"model": "llama-3.2-1b-4bit", "state": "fetching", "progress": 0.4}
        server.service.state = {**STATUS, "change": change}
        page.until(f"{PROGRESS}.innerText.includes('Fetching llama-3.2-1b-4bit · 40 %')")
        page.becomes(f"{PROGRESS}.querySelector('progress').value", 0.4)
        loading = {"state": "loading", "node": "mini", "progress": 0.75, "eta_seconds": 3.0}
        server.service.state = {**STATUS, "loading": loading, "change": {**change, "state": "loading", "progress": 1.0}}
        page.until(f"{PROGRESS}.innerText.includes('Loading llama-3.2-1b-4bit · 75 %')")
        server.service.state = {**STATUS, "model": "llama-3.2-1b-4bit", "change": {**change, "state": "ready"}}
        page.until(f"{PROGRESS}.hidden && document.querySelector('.cluster-model').innerText === 'llama-3.2-1b-4bit'")
        page.becomes(f"{select}.value", "llama-3.2-1b-4bit")
        server.service.state = {**STATUS, "model": "/home/ann/models/own", "change": {**change, "state": "ready"}}
        page.becomes(f"{select}.selectedOptions[0].textContent", "own · runs now")
        failed = {**change, "model": "other", "state": "failed", "reason": "it does not fit", "hint": "add a machine"}
        server.service.state = {**STATUS, "change": failed}
        notice = "document.querySelector('.cluster-news .notice')"
        page.until(f"{notice}.innerText.includes('could not change to other: it does not fit (add a machine)')")
        page.click(".cluster-news [aria-label=Close]")
        page.until(f"{notice}.hidden")
        # Of a folder that is not there, there is no plan.
        assert [one for one in page.complaints() if "/v1/cluster/plan" not in one] == []


def test_a_model_that_does_not_fit_cannot_be_run_and_the_page_says_why(browser: Chromium, server: PageServer) -> None:
    server.service.state = STATUS
    with browser.page() as page:
        page.screen(1280, 1600)
        shown(page, server)
        prefer(page, "light")
        select = "document.querySelector('.plan select')"
        refusal = "document.querySelector('.plan-refusal')"

        def choose(name: str) -> None:
            page.js(f"{select}.value = '{name}'; {select}.dispatchEvent(new Event('change')); 0")

        choose("llama-3.3-70b-4bit")
        page.until("document.querySelector('.plan-answer').innerText.includes('does not fit')", "the planner's verdict")
        assert page.js(f"[{RUN}.hidden, {RUN}.disabled, {refusal}.hidden]") == [False, True, False]
        assert page.js(f"document.getElementById({RUN}.getAttribute('aria-describedby')) === {refusal}")
        assert "does not fit on the machines that there are" in page.js(f"{refusal}.innerText")
        page.click(".plan-add .button")  # a machine that is only thought of does not run it either
        page.until("document.querySelectorAll('.plan-result').length === 2", "the plan with one more machine")
        assert page.js(f"[{RUN}.disabled, {refusal}.hidden]") == [True, False]
        assert faults(page) == []
        choose("llama-3.2-1b-4bit")
        assert page.js(f"[{RUN}.disabled, {refusal}.hidden]") == [True, True], "nothing is known yet"
        page.until(f"!{RUN}.disabled && {refusal}.hidden", "one that fits can be run")
        assert page.complaints() == []


def test_change_the_model_in_the_chat_leads_to_the_choice_of_the_model(browser: Chromium, server: PageServer) -> None:
    server.service.state = STATUS
    with browser.page() as page:
        page.screen(1280, 700)
        page.prefer(prefers_reduced_motion="reduce")  # a button that glides away is not hit
        page.open(server.url)
        page.click(".model-button")
        page.click(".menu a[href='#/cluster/model']")
        chosen = "document.activeElement === document.querySelector('.plan-model select')"
        page.until(chosen, "the choice of the model has the focus")
        page.js("document.activeElement.blur(); document.querySelector('.cluster').scrollTo(0, 0)")
        page.click("#change-model")
        page.until(chosen, "it has the focus again")
        assert page.complaints() == []


def test_layers_of_one_machine_in_two_ranges_meet_its_card_side_by_side(browser: Chromium, server: PageServer) -> None:
    state = json.loads(json.dumps(home_lab()))
    state["nodes"][0]["layers"] = [[0, 6], [6, 14]]
    first, *rest = state["stages"]
    state["stages"] = [{**first, "layers": [0, 6]}, {**first, "layers": [6, 14]}, *rest]
    first, *rest = state["trip"]["stages"]
    state["trip"]["stages"] = [{**first, "layers": [0, 6]}, {**first, "index": 1, "layers": [6, 14]}, *rest]
    server.service.state = state
    with browser.page() as page:
        page.screen(1280, 900)
        shown(page, server)
        ends = page.js(
            "[...document.querySelectorAll('.ribbon.tone-0')].map((one) => one.getAttribute('d'))"
            ".map((path) => path.match(/ ([0-9.]+) [0-9.]+H([0-9.]+)C/).slice(1).map(Number))"
        )
        assert len(ends) == 2
        assert ends[0][0] == pytest.approx(ends[1][1]), "the second ribbon begins where the first one ends"
        assert "studio 0–5" in page.js(SHOWN)
        assert "on 4 stages" in page.js(SHOWN)


def test_the_table_of_machines_has_its_buttons_in_view_on_a_phone(browser: Chromium, server: PageServer) -> None:
    server.service.state = home_lab()
    with browser.page() as page:
        page.screen(*PHONE, phone=True)
        shown(page, server)
        page.becomes(
            "document.querySelector('.machines').scrollWidth <= document.querySelector('.machines').clientWidth", True
        )
        page.click(".machines tr:nth-child(3) button")
        page.until("document.querySelector('dialog')?.innerText.includes('Drain laptop?')")


def test_the_view_fills_the_page_also_after_a_new_chat(browser: Chromium, server: PageServer) -> None:
    server.service.state = STATUS
    with browser.page() as page:
        page.screen(1280, 800)
        page.open(server.url)
        page.until("!!document.querySelector('.empty')")
        page.js("location.hash = '#/cluster'")
        page.until("document.querySelectorAll('.card').length === 2")
        heights = "['.cluster', '#main'].map((one) => document.querySelector(one).getBoundingClientRect().height)"
        view, whole = page.js(heights)
        assert view == whole
        page.click(".contents li:nth-child(3) button")
        page.until("document.activeElement.textContent === 'What if'", "a heading is gone to by its name")
        assert page.complaints() == []


def test_names_of_machines_and_models_are_text_however_long(browser: Chromium, server: PageServer) -> None:
    state = json.loads(json.dumps(home_lab()))
    names = ("<img src=x onerror='window.hacked=1'>", "\u202eevil" * 3, "a-very-long-name-of-a-machine" * 8)
    for node, name in zip(state["nodes"], names, strict=True):
        node["name"] = name
    state["model"] = "<b>organisation</b>/" + "m" * 120
    server.service.state = state
    with browser.page() as page:
        for size, is_phone in ((PHONE, True), ((1280, 900), False)):
            page.screen(*size, phone=is_phone)
            shown(page, server)
            page.until(f"document.documentElement.scrollWidth <= {size[0]}")
            page.until(f"document.querySelector('.cluster').scrollWidth <= {size[0]}")
        assert "<img src=x" in page.js(SHOWN)
        assert page.js("document.querySelectorAll('.cluster img, .cluster b').length") == 0
        assert page.js("window.hacked ?? null") is None
        # There is no plan for a model of such a name; the browser notes every answer with an error.
        assert [one for one in page.complaints() if "/v1/cluster/plan" not in one] == []


def test_a_lost_server_is_told_and_the_last_state_stays(browser: Chromium, server: PageServer) -> None:
    server.service.state = STATUS
    with browser.page() as page:
        shown(page, server)
        page.call(
            "Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1
        )
        page.js("dispatchEvent(new Event('edgepp-key')); 0")  # the stream is opened again
        page.until("document.querySelector('.cluster-parts').classList.contains('is-stale')", "it is told")
        page.until("document.querySelector('.cluster-problem').innerText.includes('does not answer')")
        page.becomes("document.querySelectorAll('.card').length", 2)
        page.call(
            "Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1
        )
        page.until("!document.querySelector('.cluster-parts').classList.contains('is-stale')", "it is live again")


def test_a_key_that_comes_later_opens_all_parts_of_the_view(
    browser: Chromium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPP_HOME", str(tmp_path))
    secret = add_key("laptop")
    with page_server(HttpOptions("127.0.0.1:0", require_key=True)) as locked, browser.page() as page:
        page.open(f"{locked.url}/#/cluster")
        page.until("!!document.querySelector('dialog')", "the key is asked for")
        page.press("Escape")
        page.until("document.querySelector('.cluster-problem').innerText.includes('asks for an API key')")
        page.click(".cluster-problem .button")
        page.type(secret)
        page.press("Enter")
        page.until("document.querySelectorAll('.plan-rate').length > 0", "the planner has answered")
        page.until(f"({SHOWN}).includes('measures this cluster')", "the history is read")
        told = "document.querySelector('.cluster-events li > :only-child')"
        assert "a key that may administer" in page.js(f"{told}.innerText")
        assert page.js(f"{told}.getBoundingClientRect().width") > 200, "not in the column of times"
