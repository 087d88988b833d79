"""The web page in a real Chromium: what a person does with it, and what a hostile model cannot do.

The model is scripted: these tests need an answer whose text, pauses and failures are known to the letter, which no
model gives. That real answers take the same way is the subject of the tests of the HTTP API.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from edgepp.engine.timing import Recovery
from edgepp.http_api.failures import RequestError
from edgepp.http_api.generation import Idle, ReasoningDelta, Started, TextDelta, Usage
from edgepp.http_api.http_options import HttpOptions
from tests.builders.chromium import BROWSER, CONTROL, SHIFT, Chromium, Page
from tests.builders.page_acts import ANSWER, IDLE, PHONE, SHOWN, ask, faults, finished, prefer
from tests.builders.page_server import PageServer, page_server
from tests.builders.scripted_service import Step, answer

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")

FORBIDDEN = "script, img, iframe, style, form, input, animate, [style], [id], [onclick]"
RICH = "### Head\n\nA [link](https://a.example/), `code`.\n\n- [x] done\n\n```sh\nls\n```\n\n| a |\n|---|\n| 1 |\n"
REFUSED = (
    "Applying inline style violates",
    "Executing inline event handler violates",
    "requires 'TrustedScript' assignment",  # of a script that has no end yet
)
"""What the content policy reports of the sanitiser's own document, which is parsed and never shown."""
FOCUS = """(() => {
  const element = document.activeElement, isSeen = getComputedStyle(element).outlineStyle !== "none";
  const name = (element.ariaLabel ?? element.innerText).trim();
  return [name, isSeen || element === document.body || !!element.closest(".composer-box, .list-search")];
})()"""
HOSTILE = """Look: <script>window.hacked = 1</script> <img src=x onerror="window.hacked = 2">
![cat](http://tracker.example:PORT/cat.png) <img src="http://tracker.example:PORT/raw.png">
[script](javascript:window.hacked=3) [own](URL/v1/models) [data](data:text/html,<script>window.hacked=4</script>)

<iframe srcdoc="<script>parent.hacked = 5</script>"></iframe><style>body { display: none }</style>
<svg><animate onbegin="window.hacked = 6" attributeName="x"></animate></svg>
<a href="http://tracker.example:PORT/page" id="main" class="toasts" onclick="window.hacked = 7">elsewhere</a>
<form action="http://tracker.example:PORT/form"><input name="key"><button>Send</button></form>
<div style="position: fixed; inset: 0">covered</div> <math><mtext><mglyph><style><img src=x onerror="window.hacked = 8">

```html"><img src=x onerror="window.hacked=9">
<b>code</b>
```
"""


def held(*before: str) -> tuple[asyncio.Event, list[Step]]:
    """An answer that waits after ``before`` until the event is set."""
    event = asyncio.Event()
    return event, [
        Started(7),
        *(TextDelta(0, text) for text in before),
        event,
        *answer(" End.", usage=Usage(completion_tokens=9, decode_s=0.5))[1:],
    ]


def test_an_answer_streams_is_rendered_and_stays_after_a_reload(page: Page, server: PageServer) -> None:
    event, steps = held(
        "Some **bo", "ld** text.\n\n- one\n- t", "wo\n\n```py\nx = 1\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n"
    )
    played = server.script(steps)
    ask(page, "What is **this**?")
    page.until(
        "document.querySelectorAll('.answer td').length === 2 && document.querySelector('.composer.answering') !== null"
    )
    page.becomes("document.querySelector('.answer strong').innerText", "bold")
    page.becomes("[...document.querySelectorAll('.answer li')].map(e => e.innerText)", ["one", "two"])
    page.becomes("document.querySelector('.answer pre').innerText", "x = 1")
    page.becomes("document.querySelector('.question-text').innerText", "What is **this**?")
    server.release(event)
    page.until(f"{IDLE} && {ANSWER}.endsWith('End.')")
    assert played[0].request.prompt.messages == [{"role": "user", "content": "What is **this**?"}]
    figures = page.js("document.querySelector('.figures').innerText")
    assert "tokens/s" in figures
    assert "first after" in figures
    address, shown = page.js("location.hash"), page.js(SHOWN)
    page.call("Page.reload")
    page.until(f"({SHOWN}) === {json.dumps(shown)}", "the conversation is shown again")
    page.becomes("location.hash", address)
    page.becomes("document.querySelector('.conversation-title').innerText", "What is **this**?")


def test_a_question_that_is_typed_at_once_is_not_lost(browser: Chromium, server: PageServer) -> None:
    server.script(answer("Heard."))
    with browser.page(server.url) as page:
        ask(page, "Quick")
        finished(page, "Heard.")


def test_an_answer_is_stopped_by_key_and_goes_on(page: Page, server: PageServer) -> None:
    _, steps = held("Half of it")
    played = server.script(steps, answer(", and the rest."))
    ask(page, "Go")
    page.until(f"{ANSWER} === 'Half of it'")
    page.press("Escape")
    page.until(IDLE)
    page.until("document.querySelector('.figures').innerText.includes('stopped')")
    page.click(".answer .message-bar .button:not(.icon-only)")
    finished(page, "Half of it, and the rest.")
    assert played[0].cancelled
    assert played[1].request.prompt.continues
    assert played[1].request.prompt.messages[-1] == {"role": "assistant", "content": "Half of it"}


def test_questions_are_edited_answers_tried_again_and_versions_chosen(page: Page, server: PageServer) -> None:
    played = server.script(answer("First."), answer("Second."), answer("Third."), answer("Fourth."))
    ask(page, "One?")
    finished(page, "First.")
    page.click("[aria-label='Answer again']")
    finished(page, "Second.")
    page.becomes("document.querySelector('.versions').innerText.replace(/\\s/g, '')", "2/2")
    page.click(".answer [aria-label='Version before']")
    finished(page, "First.")
    ask(page, "And two?")
    finished(page, "Third.")
    assert [message["content"] for message in played[2].request.prompt.messages] == ["One?", "First.", "And two?"]
    page.press("ArrowUp")
    page.until("document.querySelectorAll('.editor').length === 1 && !!document.activeElement.closest('.editor')")
    page.js("document.querySelector('.editor textarea').select()")
    page.type("Or three?")
    page.press("Enter")
    finished(page, "Fourth.")
    assert [message["content"] for message in played[3].request.prompt.messages] == ["One?", "First.", "Or three?"]
    page.js("[...document.querySelectorAll('.question [aria-label=\"Version before\"]')].at(-1).click()")
    finished(page, "Third.")
    page.call("Page.reload")
    finished(page, "Third.")


def test_the_system_prompt_and_sampling_reach_the_model(page: Page, server: PageServer) -> None:
    played = server.script(answer("Yes."))
    page.click("#topbar [aria-label='Settings']")
    page.until("!!document.querySelector('dialog.sheet')")
    values = {"System prompt": "Be short.", "Temperature": "0.55", "Top-p": "0.8", "Longest answer": "77", "Seed": "12"}
    for label, value in values.items():
        found = f"[...document.querySelectorAll('dialog label')].find(e => e.innerText === {json.dumps(label)}).control"
        page.js(f"{found}.focus()")
        page.type(value)
    page.click("dialog .primary")
    page.until("!document.querySelector('dialog')")
    ask(page, "Hi")
    finished(page, "Yes.")
    options = played[0].request.options
    assert played[0].request.prompt.messages[0] == {"role": "system", "content": "Be short."}
    assert (options.max_tokens, options.sampling.seed) == (77, 12)
    assert (options.sampling.temperature, options.sampling.top_p) == (0.55, 0.8)
    assert played[0].request.model == "smollm2-135m"


def test_failures_are_told_and_tried_again(page: Page, server: PageServer) -> None:
    pause = Usage(completion_tokens=2, recoveries=(Recovery(how="recomputed", pause_s=2.0, prefilled=9),))
    server.script(
        [RequestError("overloaded", "too many answers are running", "try again")],
        [Started(1), TextDelta(0, "Half"), RequestError("internal", "a stage was lost")],
        [Started(1), ReasoningDelta(0, "Let me think."), Idle(), *answer("Whole.", usage=pause)[1:]],
    )
    ask(page, "Hi")
    page.until("document.querySelector('.answer-error')?.innerText.includes('too many answers are running')")
    page.becomes("document.querySelector('.answer-error .notice').getAttribute('role')", "alert")
    page.click(".answer-error .button")
    page.until("document.querySelector('.answer-error')?.innerText.includes('a stage was lost')")
    page.becomes(ANSWER, "Half")
    page.click(".answer-error .button")
    finished(page, "Whole.")
    page.until("document.querySelector('.figures').innerText.includes('survived a lost node, pause of 2.00 s')")
    page.becomes("document.querySelector('.thoughts-text').textContent", "Let me think.")
    page.becomes("document.querySelector('.versions').innerText.replace(/\\s/g, '')", "3/3")
    assert [one for one in page.complaints() if "503" not in one] == []
    page.forget()


def test_conversations_are_found_renamed_deleted_and_brought_back(page: Page, server: PageServer) -> None:
    server.script(answer("Pears and quinces."), answer("Granite."))
    ask(page, "Fruit?")
    finished(page, "Pears and quinces.")
    page.press("o", CONTROL | SHIFT)
    page.until("location.hash === '#/chat' && !document.querySelector('.answer')", "the new chat is shown")
    ask(page, "Stone?")
    finished(page, "Granite.")
    titles = "[...document.querySelectorAll('.conversation-title')].map(e => e.innerText).join()"
    page.until(f"{titles} === 'Stone?,Fruit?'")
    page.press("k", CONTROL)
    page.until("!!document.activeElement.closest('.list-search')", "the search has the focus")
    page.type("quince")
    page.until(f"{titles} === 'Fruit?'", "the text of an answer is searched")
    page.press("Escape")
    page.until(f"{titles} === 'Stone?,Fruit?'")
    page.js("document.querySelectorAll('.conversation a')[1].focus()")
    page.press("F2")
    page.until("!!document.querySelector('dialog[open]')")
    page.type("Orchard")
    page.press("Enter")
    page.until(f"{titles} === 'Stone?,Orchard'")
    page.js("document.querySelectorAll('.conversation a')[1].focus()")
    page.press("Delete")
    page.until(f"{titles} === 'Stone?'")
    page.click(".toast .button")
    page.until(f"{titles} === 'Stone?,Orchard'")
    finished(page, "Pears and quinces.")


def test_a_second_tab_sees_what_the_first_does(browser: Chromium, page: Page, server: PageServer) -> None:
    server.script(answer("Seen."))
    with browser.page(server.url, context=page.context) as other:
        page.call("Page.bringToFront")  # a hidden tab draws nothing
        ask(page, "Both?")
        finished(page, "Seen.")
        other.call("Page.bringToFront")
        other.until("document.querySelector('.conversation-title')?.innerText === 'Both?'")
        other.click(".conversation a")
        finished(other, "Seen.")


def test_each_block_has_the_direction_of_its_text(page: Page, server: PageServer) -> None:
    server.script(answer("שלום עולם\n\n- אחד\n\nHello\n\n| שם |\n|---|\n| 1 |\n\n```py\nx = 'שלום'\n```\n"))
    ask(page, "שלום")
    page.until(f"{IDLE} && !!document.querySelector('.answer .code-block')")
    blocks = "[...document.querySelectorAll('.answer .markdown :is(p, ul, table, pre), .question-text')]"
    told = page.js(f"{blocks}.map((one) => [one.localName, getComputedStyle(one).direction])")
    assert told == [
        ["div", "rtl"], ["p", "rtl"], ["ul", "rtl"], ["p", "ltr"], ["table", "rtl"], ["pre", "ltr"]
    ]  # fmt: skip


def test_full_storage_is_told_and_the_chat_goes_on(page: Page, server: PageServer) -> None:
    server.script(answer("Still here."))
    page.js("IDBObjectStore.prototype.put = () => { throw new DOMException('full', 'QuotaExceededError') }; 0")
    ask(page, "Hi")
    finished(page, "Still here.")
    page.until("document.querySelector('.chat-notices').innerText.includes('storage is full')")


def test_hostile_markdown_runs_nothing_and_loads_nothing(page: Page, server: PageServer) -> None:
    text = HOSTILE.replace("URL", server.url).replace("PORT", server.url.rpartition(":")[2])
    server.script(answer(*(text[at : at + 7] for at in range(0, len(text), 7))))
    ask(page, "Attack")
    page.until(f"{IDLE} && document.querySelector('.answer .code-block')?.innerText.includes('code')")
    page.until("new Promise(done => setTimeout(() => done(true), 200))")
    assert page.js("window.hacked ?? null") is None
    assert page.js(f"document.querySelectorAll('.answer :is({FORBIDDEN})').length") == 0
    anchors = "[...document.querySelectorAll('.answer .markdown a')]"
    links = page.js(f"{anchors}.map(a => [a.getAttribute('href'), a.rel, a.target])")
    tracker = f"http://tracker.example:{server.url.rpartition(':')[2]}"
    opened = [href for href, *_ in links if href]
    assert opened == [f"{tracker}/cat.png", f"{tracker}/page"]
    assert all((rel, target) == ("noopener noreferrer nofollow", "_blank") for href, rel, target in links if href)
    asked = [event["request"]["url"] for event in page.told("Network.requestWillBeSent")]
    assert asked
    assert not [url for url in asked if not url.startswith(server.url)]
    assert [one for one in page.complaints() if not any(words in one for words in REFUSED)] == []
    page.forget()


def test_every_beginning_of_hostile_markdown_is_harmless(page: Page, server: PageServer) -> None:
    """An answer is drawn as far as it has come: also with a tag or a script that is not closed yet."""
    page.js("import('/web/js/chat/sanitize.js').then(found => { window.tried = found; return true; })")
    page.until("window.tried !== undefined")
    text = json.dumps(HOSTILE.replace("URL", server.url))
    harmful = page.js(f"""[...{text}].flatMap((_, length) => {{
      const drawn = document.createElement("div");
      drawn.append(window.tried.elementsOf(window.tried.blocksOf({text}.slice(0, length + 1))));
      document.body.append(drawn);
      const isArmed = element => [...element.attributes].some(one => /^on|^style$|^src/.test(one.name));
      const found = [...drawn.querySelectorAll("*")].some(one => one.matches("{FORBIDDEN}") || isArmed(one));
      drawn.remove();
      return found ? [length + 1] : [];
    }})""")
    assert harmful == []
    assert page.js("window.hacked ?? null") is None
    assert [one for one in page.complaints() if not any(words in one for words in REFUSED)] == []
    page.forget()


def test_the_policy_stops_scripts_that_get_into_the_page(page: Page) -> None:
    page.js("""(() => {
      for (const inside of ["window.hacked = 1", ""]) {
        const script = document.createElement("script");
        try {
          if (inside) script.textContent = inside;
          else script.src = "data:text/javascript,window.hacked=2";
        } catch {}
        document.body.append(script);
      }
      try { document.body.insertAdjacentHTML("beforeend", "<img src=x onerror='window.hacked=3'>"); } catch {}
      try { setTimeout("window.hacked = 4"); } catch {}
    })()""")
    page.until("new Promise(done => setTimeout(() => done(true), 100))")
    assert page.js("window.hacked ?? null") is None
    assert page.complaints()
    page.forget()


def test_a_key_is_asked_for_kept_in_the_tab_and_taken_from_a_qr_code(
    browser: Chromium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgepp.http_api.api_keys import add_key

    monkeypatch.setenv("EDGEPP_HOME", str(tmp_path))
    secret = add_key("laptop")
    with page_server(HttpOptions("127.0.0.1:0", require_key=True)) as locked, browser.page(locked.url) as page:
        locked.script(answer("Open."))
        page.until("document.activeElement.matches('dialog input[type=password]')")
        page.press("Escape")
        page.until("document.querySelector('.chat-notices').innerText.includes('asks for an API key')")
        page.click(".chat-notices button")
        page.until("document.activeElement.matches('dialog input[type=password]')")
        page.type(secret)
        page.press("Enter")
        page.until(
            "!document.querySelector('dialog') && document.querySelector('.model-name')?.innerText === 'smollm2-135m'"
        )
        ask(page, "Hi")
        finished(page, "Open.")
        page.becomes("[localStorage.getItem('edgepp.key'), sessionStorage.getItem('edgepp.key')]", [None, secret])
        with browser.page(f"{locked.url}/#key={secret}") as other:
            other.until("document.querySelector('.model-name')?.innerText === 'smollm2-135m'")
            assert secret not in other.js("location.href")
            assert other.complaints() == []


def test_a_phone_has_a_drawer_and_nothing_is_cut_off(page: Page, server: PageServer) -> None:
    server.script(
        answer("A line.\n\n", "`" + "x" * 200 + "`\n\n", "| a | b | c |\n|---|---|---|\n|" + " long cell |" * 3 + "\n")
    )
    page.screen(*PHONE, phone=True)
    ask(page, "Wide?")
    page.until(f"{IDLE} && !!document.querySelector('.answer table')")
    page.until(f"document.documentElement.scrollWidth <= {PHONE[0]}")
    page.until(f"document.querySelector('.thread-scroll').scrollWidth <= {PHONE[0]}")
    page.until("getComputedStyle(document.getElementById('sidebar')).visibility === 'hidden'")
    page.click("#topbar .drawer-toggle")
    page.until("document.getElementById('sidebar').getBoundingClientRect().left === 0")
    page.click(".conversation a")
    page.until("getComputedStyle(document.getElementById('sidebar')).visibility === 'hidden'")


def test_esc_closes_what_lies_on_top_and_the_focus_goes_back_on_a_phone(page: Page) -> None:
    page.screen(320, 568, phone=True)
    page.click("#topbar .drawer-toggle")
    page.until("document.getElementById('sidebar').getBoundingClientRect().left === 0", "the sidebar is open")
    page.click(".list-head [aria-haspopup=menu]")
    page.until("!!document.querySelector('.menu')")
    page.js(
        "[...document.querySelectorAll('.menu-item')].find((one) => one.innerText.includes('shortcuts')).focus(); 0"
    )
    page.press("Enter")
    page.until("!!document.querySelector('dialog[open]')", "the shortcuts are shown")
    assert page.js("(({scrollWidth, clientWidth}) => scrollWidth <= clientWidth)(document.querySelector('dialog'))")
    page.press("Escape")
    page.until("!document.querySelector('dialog')")
    assert page.js("document.getElementById('sidebar').classList.contains('open')"), "the sidebar stays"
    page.becomes("document.activeElement.ariaLabel", "All conversations")
    page.press("Enter")
    page.until("!!document.querySelector('.menu')")
    page.press("Escape")
    page.until("!document.querySelector('.menu')")
    assert page.js("document.getElementById('sidebar').classList.contains('open')"), "the menu alone is closed"
    page.press("Escape")
    page.until("getComputedStyle(document.getElementById('sidebar')).visibility === 'hidden'")
    page.becomes("document.activeElement.ariaLabel", "Open the sidebar")


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_axe_finds_no_serious_fault(page: Page, server: PageServer, colours: str) -> None:
    server.script(answer(RICH))
    prefer(page, colours)
    assert faults(page) == []
    ask(page, "Hi")
    page.until(f"{IDLE} && !!document.querySelector('.answer table')")
    assert faults(page) == []
    page.click("#topbar [aria-label='Settings']")
    page.until("!!document.querySelector('dialog[open]')")
    assert faults(page) == []
    page.press("Escape")
    page.screen(*PHONE, phone=True)
    page.click("#topbar .drawer-toggle")
    page.until("document.getElementById('sidebar').getBoundingClientRect().left === 0")
    assert faults(page) == []


def test_all_works_by_keyboard_and_the_focus_is_seen(page: Page, server: PageServer) -> None:
    server.script(answer("Yes."))
    ask(page, "Hi")
    finished(page, "Yes.")
    page.js("document.activeElement.blur()")
    reached = []
    for _ in range(30):
        page.press("Tab")
        reached.append(page.js(FOCUS))
    assert all(seen for _, seen in reached)
    names = {name for name, _ in reached}
    assert {
        "Skip to content",
        "Cluster",
        "New chat",
        "Settings",
        "Answer again",
        "Copy the answer",
        "Edit the question",
    } <= names
    assert page.js("document.querySelectorAll('main, header, aside, nav').length") >= 4


def test_who_scrolls_up_is_not_taken_back_to_the_end_however_they_scroll(page: Page, server: PageServer) -> None:
    server.script(answer("A line.\n\n" * 60), answer("Another line.\n\n" * 60))
    page.screen(1000, 600)
    page.open(server.url)
    for question in ("First?", "Second?"):
        ask(page, question)
        page.until(f"{IDLE} && {ANSWER}?.endsWith('line.')")
    top = "document.querySelector('.thread-scroll').scrollTop"
    page.until(f"{top} > 2000", "the end is in view")
    page.js(
        "document.querySelector('.thread-scroll').scrollTop = 0"
    )  # as by its scroll bar, or by a search of the browser
    page.click(".question [aria-label='Edit the question']")
    page.until("!!document.querySelector('.editor')")
    page.js("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(0))))")
    assert page.js(top) < 100
    page.press("Escape")
    page.click(".to-end")
    page.until("(e => e.scrollHeight - e.scrollTop - e.clientHeight)(document.querySelector('.thread-scroll')) < 5")
