"""A hub that lies or sends without end gives a one-sentence error: bytes are limited, and partial data is not used."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgepp.errors import ModelError
from edgepp.layer_range import LayerRange
from edgepp.model.catalogue.cards import find
from edgepp.model.fetch import fetch, is_cached
from edgepp.model.hub import client as hub_client
from edgepp.model.hub import download
from edgepp.model.hub import http_client as hub_http
from edgepp.model.random_checkpoint import TINY
from edgepp.model.weights.model_parts import ModelParts
from edgepp.model.weights.partial_file import PartialFile
from tests.builders.checkpoints import Checkpoints
from tests.hub import COMMIT, FakeHub, serving
from tests.waiting import PATIENCE_S

NAME = "org/model"
MAX_BYTES = 24 << 20  # buffers of sockets, and bytes read before the error is noticed; an endless body has more

Handler = BaseHTTPRequestHandler


@pytest.fixture
def model(checkpoints: Checkpoints) -> Path:
    return checkpoints(TINY)


@pytest.fixture
def hub(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    import huggingface_hub

    monkeypatch.setenv("EDGEPP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "shared"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_client, "_RETRY_BASE_S", 0.0)
    with serving(FakeHub({NAME: model})) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running
    huggingface_hub.close_session()


def begin(handler: Handler, status: int, headers: dict[str, str]) -> None:
    handler.send_response(status)
    for key, value in headers.items():
        handler.send_header(key, value)
    handler.end_headers()


def endless(handler: Handler, sent: list[int], block: bytes = bytes(1 << 16)) -> None:
    """Send until the other side closes, or far more than it should accept."""
    try:
        while sum(sent) < 4 * MAX_BYTES:
            handler.wfile.write(block)
            sent.append(len(block))
    except ConnectionError:
        pass


def ten_bytes(status: int, headers: dict[str, str]) -> Callable[[Handler, str, list[int]], bool]:
    def answer(handler: Handler, name: str, sent: list[int]) -> bool:
        if name != "config.json":
            return False
        begin(handler, status, headers)
        endless(handler, sent)
        return True

    return answer


def endless_listing(handler: Handler, name: str, sent: list[int]) -> bool:
    if name != "listing":
        return False
    begin(handler, 200, {"Content-Type": "application/json"})
    endless(handler, sent, b'{"rfilename": "x"},' * 4000)
    return True


def endless_error(handler: Handler, name: str, sent: list[int]) -> bool:
    begin(handler, 404, {"X-Error-Code": "EntryNotFound"})
    endless(handler, sent)
    return True


def endless_redirect(handler: Handler, name: str, sent: list[int]) -> bool:
    if name != "config.json":
        return False
    begin(handler, 302, {"Location": handler.path})
    endless(handler, sent)
    return True


def circles(handler: Handler, name: str, sent: list[int]) -> bool:
    begin(handler, 302, {"Location": handler.path, "Content-Length": "0"})
    return True


ENDLESS: dict[str, Callable[[Handler, str, list[int]], bool]] = {
    "10 bytes by range": ten_bytes(206, {"Content-Range": "bytes 0-9/10"}),
    "10 bytes, coded": ten_bytes(200, {"Content-Length": "10", "Content-Encoding": "gzip"}),
    "no length": ten_bytes(200, {}),
    "a length of 19 digits": ten_bytes(200, {"Content-Length": "9" * 19}),
    "a range from elsewhere": ten_bytes(206, {"Content-Range": "bytes 5-9/10"}),
    "a range beyond its file": ten_bytes(206, {"Content-Range": "bytes 0-99/10"}),
    "a range of 30 digits": ten_bytes(206, {"Content-Range": f"bytes 0-{10**30 - 1}/{10**30}"}),
    "listing": endless_listing,
    "error": endless_error,
    "redirect": endless_redirect,
    "circles": circles,
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_an_endless_answer_is_refused_after_few_bytes(hub: FakeHub, kind: str) -> None:
    sent: list[int] = []
    hub.hostile = lambda handler, name: ENDLESS[kind](handler, name, sent)
    with pytest.raises(ModelError) as refused:
        fetch(NAME)
    assert sum(sent) < MAX_BYTES
    assert "\n" not in str(refused.value)
    assert refused.value.hint
    hub.hostile = None
    assert not is_cached(NAME)
    assert is_cached(str(fetch(NAME)))


def test_weights_that_never_end_are_refused(hub: FakeHub, model: Path) -> None:
    sent: list[int] = []
    data = (model / "model.safetensors").read_bytes()

    def answer(handler: Handler, name: str) -> bool:
        if name != "model.safetensors":
            return False
        start, last = map(int, handler.headers["Range"].removeprefix("bytes=").split("-"))
        last = min(last, len(data) - 1)
        begin(handler, 206, {"Content-Range": f"bytes {start}-{last}/{len(data)}"})
        endless(handler, sent, data[start : last + 1])
        return True

    hub.hostile = answer
    with pytest.raises(ModelError, match=r"more bytes of model\.safetensors than it announced"):
        fetch(NAME)
    assert sum(sent) < MAX_BYTES


def test_a_trickle_counts_as_a_broken_connection(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_http, "STALL_S", 0.0)  # each piece is one of a window that is over

    def answer(handler: Handler, name: str) -> bool:
        if name != "config.json":
            return False
        begin(handler, 200, {"Content-Length": "1000000"})
        try:
            for _ in range(1_000_000):
                handler.wfile.write(b" ")
        except ConnectionError:
            pass
        return True

    monkeypatch.setattr(hub_http, "STALL_BYTES", 1 << 30)
    hub.hostile = answer
    with pytest.raises(ModelError, match="sends next to nothing"):
        fetch(NAME)


def test_headers_that_never_end_count_as_no_answer(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_http, "_HEADERS_TIMEOUT_S", 0.05)
    enough = threading.Event()

    def answer(handler: Handler, name: str) -> bool:
        handler.wfile.write(b"HTTP/1.0 200 OK\r\nX-Slow: ")
        enough.wait(PATIENCE_S)
        return True

    hub.hostile = answer
    with pytest.raises(ModelError, match="does not finish the headers of its answer"):
        fetch(NAME)
    enough.set()


def test_a_file_of_another_size_than_listed_is_refused(hub: FakeHub, model: Path) -> None:
    def answer(handler: Handler, name: str) -> bool:
        if name != "listing":
            return False
        files = [{"rfilename": path.name, "size": path.stat().st_size + 1} for path in model.iterdir()]
        body = json.dumps({"sha": COMMIT, "siblings": files}).encode()
        begin(handler, 200, {"Content-Length": str(len(body))})
        handler.wfile.write(body)
        return True

    hub.hostile = answer
    with pytest.raises(ModelError, match=r"lists \d+ bytes of config\.json in org/model and sends a file of \d+"):
        fetch(NAME)


def test_small_files_have_a_limit_together(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_MAX_SMALL_FILES_BYTES", 1000)
    for sizes in (True, False):
        hub.sizes = sizes
        with pytest.raises(ModelError, match="MiB of small files"):
            fetch(NAME)
    assert hub.weights_sent() == 0


def test_a_disk_that_fills_up_leaves_no_wrong_data(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    real = PartialFile.write

    def full(file: PartialFile, offset: int, data: bytes) -> None:
        if offset > 400_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file, offset, data)

    with monkeypatch.context() as patch:
        patch.setattr(PartialFile, "write", full)
        with pytest.raises(ModelError, match=r"cannot be stored .*: No space left on device"):
            fetch(NAME)
    assert not is_cached(NAME)
    assert is_cached(str(fetch(NAME)))


def test_another_model_under_a_cards_name_is_refused(hub: FakeHub, model: Path) -> None:
    card = find("llama-3.2-1b-4bit")
    assert card.repository is not None
    hub.repositories[card.repository] = model
    hub.commit = card.revision or COMMIT
    with pytest.raises(ModelError, match="gives 4 as num_hidden_layers, and the card"):
        fetch(card.name, ModelParts(LayerRange(0, 1)))
    assert hub.weights_sent() == 0


SIBLINGS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "rfilename": st.sampled_from(
                ["config.json", "../x", "/etc/x", "a/b", ".x", "", "model.safetensors", 3, None]
            ),
            "size": st.sampled_from([None, -1, 0, 10**30, "7", 1.5, True, 12]),
        },
    ),
    max_size=3,
)
LISTINGS = st.one_of(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5)),
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
        max_leaves=6,
    ),
    st.fixed_dictionaries({"sha": st.sampled_from([COMMIT, "x", 7, None]), "siblings": SIBLINGS}),
)


@given(listing=LISTINGS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_listing_is_used_or_refused_in_a_sentence(hub: FakeHub, tmp_path: Path, listing: Any) -> None:
    body = json.dumps(listing).encode()

    def answer(handler: Handler, name: str) -> bool:
        if name != "listing":
            return False
        begin(handler, 200, {"Content-Length": str(len(body))})
        handler.wfile.write(body)
        return True

    hub.hostile = answer
    with pytest.raises(ModelError):
        fetch("org/model", newest=True)
    names = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert names <= {"lock", "files.json", "main", "config.json"}
