"""Pictures of the web page for the README: ``python -m tests.builders.page_pictures docs/images``.

The answers are examples, written here: the pictures show the page and not a model. Fonts are those of the machine that
takes the pictures.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from edgepp.http_api.generation import Usage
from tests.builders.chromium import Page, chromium
from tests.builders.cluster_state import home_lab
from tests.builders.page_server import PageServer, page_server
from tests.builders.scripted_service import Step, answer

QUESTION = "How do I back up my home folder to the NAS every night?"
EARLIER = ("Why is the sky blue, for a child?", "Compare ZFS and btrfs in a table", "A quiet weekend with rain")
ANSWER = """Use **restic**: it encrypts on your machine, sends only what is new, and can prove that a backup is whole.

Save this as `~/.local/bin/backup` and make it executable:

```bash
#!/bin/sh
set -eu
# The repository is on the NAS, its password is not.
export RESTIC_REPOSITORY="sftp:nas.local:/backups/home"
restic backup "$HOME" --exclude "$HOME/.cache"
restic forget --keep-daily 7 --keep-weekly 5 --prune
```

A systemd timer runs it at three, also after a night asleep:

| Directive | Value | Why |
|---|---|---|
| `OnCalendar` | `03:00` | nobody waits for the network |
| `Persistent` | `true` | runs after waking, if the hour was missed |
"""


def main(folder: Path) -> None:
    """Write pictures of the chat in light and of the cluster view in dark, each also on a phone."""
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        chromium(Path(profile)) as browser,
        page_server() as server,
        browser.page() as page,
    ):
        page.screen(1280, 800)
        page.prefer(prefers_color_scheme="light", prefers_reduced_motion="reduce")
        page.open(server.url)
        for question in EARLIER:
            _ask(page, server, question, answer("An answer."))
            page.js("location.hash = '#/chat'")
        pieces = [ANSWER[at : at + 4] for at in range(0, len(ANSWER), 4)]
        usage = Usage(prompt_tokens=38, completion_tokens=len(pieces), prompt_s=0.3, decode_s=len(pieces) / 31)
        _ask(page, server, QUESTION, answer(*pieces, usage=usage))
        page.until("document.querySelectorAll('.answer td').length === 6 && !!document.querySelector('.tone-string')")
        page.js("document.querySelector('.thread-scroll').scrollTo(0, 0)")
        _picture(page, folder / "page-light.png")
        page.screen(390, 844, phone=True, scale=1.5)
        page.js("document.querySelector('.thread-scroll').scrollTo(0, 0)")
        _picture(page, folder / "page-phone.png")
        server.service.state = home_lab()
        page.screen(1280, 960)
        page.js("location.hash = '#/cluster'")
        page.until("document.querySelectorAll('.plan-rate').length > 0", "the planner has answered")
        page.prefer(prefers_color_scheme="dark", prefers_reduced_motion="reduce")
        _picture(page, folder / "cluster-dark.png")
        page.screen(390, 844, phone=True, scale=1.5)
        _picture(page, folder / "cluster-phone.png")


def _ask(page: Page, server: PageServer, question: str, script: list[Step]) -> None:
    server.script(script)
    page.until("!!document.querySelector('.empty')")
    page.click(".composer-text")
    page.type(question)
    page.press("Enter")
    page.until("!document.querySelector('.composer.answering') && !!document.querySelector('.answer .figures')")


def _picture(page: Page, file: Path) -> None:
    """Take the picture once transitions have ended."""
    page.js("document.activeElement.blur()")
    page.js("new Promise(done => setTimeout(() => done(0), 600))")
    page.picture(file)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
