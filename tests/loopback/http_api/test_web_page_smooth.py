"""Long answers on the web page: work is counted and not time, which on a busy machine is luck.

`python -m bench.page` measures the time.
"""

from __future__ import annotations

import asyncio

import pytest

from tests.builders.chromium import BROWSER, Page
from tests.builders.page_acts import ANSWER, IDLE, ask
from tests.builders.page_server import PageServer
from tests.builders.scripted_service import answer

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")


AT_THE_END = "(e => e.scrollHeight - e.scrollTop - e.clientHeight)(document.querySelector('.thread-scroll')) < 5"
BUSY = "const busy = (ms) => { const end = performance.now() + ms; while (performance.now() < end); };"


def test_ten_thousand_tokens_render_each_finished_block_once_and_are_shown_again(
    page: Page, server: PageServer
) -> None:
    pieces = ["word "] * 10_000
    for at in range(0, 10_000, 40):
        pieces[at] = ("\n\n### Head\n\n", "\n\n- item ", "\n- item ", "\n\n```py\nx = 1\n", "\n```\n\n", "\n\n")[
            at // 40 % 6
        ]
    half = asyncio.Event()
    whole = answer(*pieces)
    server.script([*whole[:5000], half, *whole[5000:]])
    ask(page, "Long")
    page.until("document.querySelectorAll('.answer .markdown > *').length > 20")
    page.js("document.querySelector('.answer .markdown').firstElementChild.isFirst = true; 0")
    server.release(half)
    page.until(f"{IDLE} && {ANSWER}.length > 40000")
    page.until("document.querySelectorAll('.answer .markdown .code-block').length === 42")
    count = "document.querySelectorAll('.answer .markdown > *, .answer .markdown > * > li').length"
    blocks = page.js(count)
    work = page.js("import('/web/js/chat/markdown.js').then(({work}) => work)")
    assert page.js("document.querySelector('.answer .markdown').firstElementChild.isFirst") is True
    assert work["frames"] > 1
    assert work["pieces"] <= 2 * blocks + 3 * work["frames"], "finished blocks are rendered again"
    page.until(AT_THE_END, "the end is in view")
    page.call("Page.reload")
    page.until(f"{count} === {blocks}", "the stored answer is shown again")
    page.until(AT_THE_END, "the end is in view again")


def test_code_that_grows_is_appended(page: Page, server: PageServer) -> None:
    first, second = asyncio.Event(), asyncio.Event()
    begin, *rest = answer("```py\nx = 1\n", "y = 2\n" * 200, "```\n")
    server.script([begin, rest[0], first, rest[1], second, *rest[2:]])
    ask(page, "Code")
    code = "document.querySelector('.answer pre code')"
    page.until(f"{code}?.textContent.startsWith('x = 1')")
    page.js(f"{code}.firstChild.isFirst = true; 0")
    server.release(first)
    page.until(f"{code}.textContent.trim().split('\\n').length === 201")
    assert page.js(f"{code}.firstChild.isFirst") is True
    server.release(second)
    page.until(f"{IDLE} && {code}.textContent.trim().split('\\n').length === 201")


def test_events_that_come_in_one_piece_leave_the_page_time_between_them(page: Page) -> None:
    told = page.js(f"""(async () => {{
      {BUSY}
      const {{eventsOf}} = await import("/web/js/chat/sse.js");
      const channel = new MessageChannel(), handled = [];
      let number = 0;
      channel.port1.onmessage = () => handled.push(number);
      for await (const data of eventsOf(new Response("data: x\\n\\n".repeat(6)).body)) {{
        number += 1;
        channel.port2.postMessage(data);
        busy(20);
      }}
      return handled;
    }})()""")
    assert told[:5] == [1, 2, 3, 4, 5], "what the page has to do waits until all events are read"


def test_all_that_is_rendered_shares_the_time_of_a_frame(page: Page) -> None:
    frames = page.js(f"""(async () => {{
      {BUSY}
      const {{inFrame, notInFrame}} = await import("/web/js/frames.js");
      const done = [], dropped = () => done.push("dropped");
      await new Promise((resolve) => {{
        for (const name of ["a", "b", "c"]) inFrame(() => {{
          busy(30);
          done.push([name, document.timeline.currentTime]);
          if (done.length === 3) resolve();
        }});
        inFrame(dropped);
        notInFrame(dropped);
      }});
      return done;
    }})()""")
    assert [name for name, _ in frames] == ["c", "b", "a"]
    assert len({time for _, time in frames}) == 3
