"""One Chromium per test module that needs it, and the web page in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.builders.chromium import Chromium, Page, chromium
from tests.builders.page_server import PageServer, page_server


@pytest.fixture(scope="module")  # not longer: tests of other modules count the processes that are left
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """The browser; each test opens pages with profiles of their own."""
    with chromium(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture(scope="module")
def server() -> Iterator[PageServer]:
    """A server with the web page, over scripted answers."""
    with page_server() as found:
        yield found


@pytest.fixture
def page(browser: Chromium, server: PageServer) -> Iterator[Page]:
    """A new profile at the page; the console stays clean unless the test has looked at it."""
    with browser.page() as found:
        found.screen(1280, 800)
        found.open(server.url)
        found.until("document.activeElement?.matches('.composer-text')", "the composer has the focus")
        yield found
        assert found.complaints() == []
