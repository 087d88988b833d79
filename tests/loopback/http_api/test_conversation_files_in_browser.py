"""Conversations as files in a real Chromium: exported, imported in another profile; and files that are no export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.builders.chromium import BROWSER, Chromium, Page
from tests.builders.page_acts import SHOWN, ask, finished
from tests.builders.page_server import PageServer
from tests.builders.scripted_service import answer
from tests.waiting import eventually

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")

TOLD = "document.querySelector('.toasts').innerText"
LISTED = "[...document.querySelectorAll('.conversation-title')].map((one) => one.innerText)"
ALL = ".list-head [aria-label='All conversations']"
ROOT: dict[str, Any] = {"id": "a", "parent": "root", "role": "user", "text": "hi", "created": 1}


def pick(page: Page, menu: str, label: str) -> None:
    """Open the menu of the button ``menu`` and take the item ``label``."""
    page.click(menu)
    items = "[...document.querySelectorAll('.menu-item')]"
    page.until(f"{items}.some((one) => one.innerText.startsWith({json.dumps(label)}))", "the menu is open")
    page.js(f"{items}.find((one) => one.innerText.startsWith({json.dumps(label)})).click(); 0")


def import_file(page: Page, file: Path) -> str:
    """Choose ``file`` as a person does; what the page says then."""
    page.js("document.querySelector('.toasts').replaceChildren(); 0")
    page.call("Page.setInterceptFileChooserDialog", enabled=True)
    known = len(page.told("Page.fileChooserOpened"))
    pick(page, ALL, "Import")
    opened = eventually("a file is asked for", lambda: page.told("Page.fileChooserOpened")[known:])
    page.call("DOM.setFileInputFiles", files=[str(file)], backendNodeId=opened[0]["backendNodeId"])
    return str(page.until(TOLD, "the page says what happened"))


def conversation(*messages: Any, **fields: Any) -> dict[str, Any]:
    return {"title": "Pears", "messages": list(messages), **fields}


def export_of(*conversations: Any) -> dict[str, Any]:
    return {"format": "edgepp-conversations", "version": 1, "conversations": list(conversations)}


def test_conversations_are_exported_and_imported_in_another_profile(
    browser: Chromium, page: Page, server: PageServer, tmp_path: Path
) -> None:
    browser.call(
        "Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path), browserContextId=page.context
    )

    def saved(name: str) -> str:
        file = tmp_path / name
        eventually(f"{name} is saved", lambda: file.exists() and file.stat().st_size > 0)
        return file.read_text()

    pick(page, ALL, "Export all as JSON")
    page.until(f"{TOLD}.includes('no conversation to export')")
    assert list(tmp_path.iterdir()) == []
    server.script(answer("One."), answer("Two."), answer("Green."))
    ask(page, "Count")
    finished(page, "One.")
    page.click("[aria-label='Answer again']")
    finished(page, "Two.")
    pick(page, ".conversation [aria-haspopup=menu]", "Export as Markdown")
    assert saved("count.md") == "# Count\n\n## Question\n\nCount\n\n## Answer\n\nTwo.\n"
    pick(page, ".conversation [aria-haspopup=menu]", "Export as JSON")
    assert len(json.loads(saved("count.json"))["conversations"]) == 1
    page.click(".new-chat")
    page.until("!!document.querySelector('.empty')")
    ask(page, "Pears: 日本?")
    finished(page, "Green.")
    pick(page, ALL, "Export all as JSON")
    assert len(json.loads(saved("edgepp-conversations.json"))["conversations"]) == 2
    with browser.page() as other:
        other.screen(1280, 800)
        other.open(server.url)
        assert import_file(other, tmp_path / "edgepp-conversations.json") == "2 conversations imported."
        other.becomes(f"{LISTED}.sort()", ["Count", "Pears: 日本?"])
        other.open(server.url)  # they are kept
        other.becomes(f"{LISTED}.sort()", ["Count", "Pears: 日本?"])
        other.click(".conversation:nth-child(2) a")
        finished(other, "Two.")
        other.click("[aria-label='Version before']")
        finished(other, "One.")
        assert other.complaints() == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "The file is empty."),
        ("hello", "The file is no JSON."),
        ("[]", "no export of this page"),
        ('[{"title": "of another program", "mapping": {}}]', "no files of other programs"),
        ('{"format": "edgepp-conversations", "version": 2}', "another version of this page"),
        ('{"format": "edgepp-conversations", "version": 1, "conversations": {}}', "no list of conversations"),
        (export_of(), "The file holds no conversation."),
        (export_of(None), "Conversation 1 of the file is damaged: it is no conversation."),
        (export_of(conversation(ROOT), 5), "Conversation 2 of the file is damaged: it is no conversation."),
        (export_of(conversation()), "Conversation 1 (“Pears”) of the file is damaged: it has no first message."),
        (export_of(conversation(None)), "a text is missing"),
        (export_of(conversation(ROOT, title=5)), "a text is missing"),
        (export_of(conversation(ROOT, ROOT)), "two messages have one id"),
        (export_of(conversation({**ROOT, "role": "system"})), "neither a question nor an answer"),
        (export_of(conversation({**ROOT, "parent": "gone"})), "follows one that is not there"),
        (export_of(conversation({**ROOT, "parent": "b"}, {**ROOT, "id": "b"} | {"parent": "a"})), "no first message"),
        (export_of(conversation({**ROOT, "text": {"toString": "x"}})), "a text is missing"),
    ],
)
def test_of_a_file_that_is_no_export_nothing_is_kept_and_the_page_says_why(
    page: Page, tmp_path: Path, text: Any, sentence: str
) -> None:
    file = tmp_path / "conversations.json"
    file.write_text(text if isinstance(text, str) else json.dumps(text))
    told = import_file(page, file)
    assert told.startswith("Nothing is imported. ")
    assert sentence in told
    assert page.js(LISTED) == []


def test_a_file_that_is_too_large_is_refused_before_it_is_read(page: Page, tmp_path: Path) -> None:
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(257 << 20)
    assert import_file(page, tmp_path / "huge.json") == "Nothing is imported. The file is larger than 256 MiB."


def test_values_of_a_file_that_no_page_has_written_do_no_harm(page: Page, tmp_path: Path) -> None:
    hostile = "<img src=x onerror='window.hacked=1'>"
    reply = {
        **ROOT,
        "id": "b",
        "parent": "a",
        "role": "assistant",
        "text": "half",
        "state": "writing",
        "model": hostile,
    }
    reply |= {"error": {"text": hostile}, "stats": {"tokens": 1e308, "perSecond": 1e308, "firstMs": -1}}
    one = conversation(ROOT, reply, title=hostile, created=1e308, updated=1e308, picks={"__proto__": "a", "a": "b"})
    (tmp_path / "x.json").write_text("\ufeff" + json.dumps(export_of({**one, "settings": {"temperature": "hot"}})))
    assert import_file(page, tmp_path / "x.json") == "1 conversation imported."
    page.becomes(LISTED, [hostile])
    page.click(".conversation a")
    page.until(f"({SHOWN}).includes('half')", "the conversation is shown")
    assert page.js("document.querySelectorAll('.thread img, .conversations img').length") == 0
    assert "000,000" not in page.js(SHOWN), "a rate that no machine has is not told"
    assert page.js("window.hacked ?? null") is None
    now = page.js("(async () => (await import('/web/js/chat/library.js')).list.get()[0].updated <= Date.now())()")
    assert now is True


def test_many_conversations_and_many_messages_are_imported_at_once(page: Page, tmp_path: Path) -> None:
    chain = [{**ROOT, "id": str(n), "parent": str(n - 1) if n else "root"} for n in range(20_000)]
    others = [conversation(ROOT, title=f"Chat {n}") for n in range(500)]
    (tmp_path / "x.json").write_text(json.dumps(export_of(conversation(*chain, title="Long"), *others)))
    assert import_file(page, tmp_path / "x.json") == "501 conversations imported."
    assert page.js(f"{LISTED}.length") == 501


def test_an_import_that_the_browser_has_no_room_for_is_told(page: Page, tmp_path: Path) -> None:
    page.js("IDBObjectStore.prototype.put = () => { throw new DOMException('full', 'QuotaExceededError') }; 0")
    (tmp_path / "x.json").write_text(json.dumps(export_of(conversation(ROOT))))
    assert import_file(page, tmp_path / "x.json") == "1 conversation imported."
    page.becomes(LISTED, ["Pears"])
    page.until("document.body.innerText.includes('storage is full')", "the reader is told that it is not kept")
