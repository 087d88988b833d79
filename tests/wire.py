"""Messages for tests: every valid one as a hypothesis strategy."""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any, get_args, get_type_hints

from hypothesis import strategies as st
from zmq.utils import z85

from edgepp.wire import text_fields as values
from edgepp.wire.messages import Message
from edgepp.wire.messages.control import Attach, Welcome
from edgepp.wire.messages.data import Batch, Forward, Kept, KvPiece
from edgepp.wire.messages.nodes import Enrol, Load, Loaded, Warm
from edgepp.wire.messages.ranks import KvOrder, StepOrder
from edgepp.wire.messages.recovery import Expect, Held, Push, Replay

KEYS = tuple(z85.encode(bytes([number] * 32)).decode() for number in (1, 2, 3))
"""Keys without secrets, the same in every process, so that an input that breaks something breaks it again."""
_HOSTS = ("10.0.0.2", "fd00::1", "fe80::1%eth0")
_ADDRESSES = ("10.0.0.2:5720", "[fe80::1%eth0]:5721", "mini.local:1")
_WORDS = st.text(string.ascii_letters + "äö漢", min_size=1, max_size=20)
_OF_FORM: dict[Callable[[str], bool], st.SearchStrategy[str]] = {
    values.is_key: st.sampled_from(KEYS),
    values.is_key_or_empty: st.sampled_from((*KEYS, "")),
    values.are_addresses: st.lists(st.sampled_from(_ADDRESSES), max_size=3).map(",".join),
    values.are_hosts: st.lists(st.sampled_from(_HOSTS), max_size=3).map(",".join),
    values.is_route: st.binary(min_size=1, max_size=40).filter(lambda raw: raw[0] > 0).map(bytes.hex),
    values.is_name: _WORDS,
    values.is_label: _WORDS | st.just(""),
    values.is_text: st.text(st.characters(exclude_categories=("Cs",)), max_size=60),
}


def field_values(hint: Any) -> st.SearchStrategy[Any]:
    """Every value that a field's annotation allows."""
    if hint is bool:
        return st.booleans()
    arguments = get_args(hint)
    if isinstance(arguments[0], str):
        return st.sampled_from(arguments)
    kind, low, high, *form = arguments
    if kind is int:
        return st.integers(low, high)
    if kind is str:
        return _OF_FORM[form[0]]
    if kind is bytes:
        return st.binary(min_size=low, max_size=min(high, 80))
    return st.lists(st.integers(0, 1 << 40), min_size=low, max_size=8).map(tuple)


def valid(message: Message) -> Message:
    """The message with the fields that depend on each other brought together."""
    match message:
        case Welcome():
            return message._replace(start=1, stop=2, num_layers=max(2, message.num_layers))
        case Attach():
            return message._replace(
                next_key=message.next_key if message.next_addresses else "",
                keeper_key=message.keeper_key if message.keeper_addresses else "",
                copies_from=message.copies_from if message.keeps_copies else "",
                inherits=0 if message.inherits == message.epoch else message.inherits,
            )
        case Forward():
            rows = max(1, message.rows)
            message = message._replace(rows=rows, wanted_rows=min(message.wanted_rows, rows))
            return _with_result(message)
        case Replay():
            start, stop = 0, max(1, message.stop)
            return message._replace(start=start, stop=stop, capacity=max(message.capacity, stop), source=0)
        case Expect():
            length = max(1, message.length)
            return message._replace(length=length, capacity=max(message.capacity, length))
        case Push():
            ranges = {"start_layer": 1, "stop_layer": 2, "start": 0, "stop": max(1, message.stop)}
            return message._replace(**ranges, addresses=message.addresses or _ADDRESSES[0])
        case KvPiece() | Kept() | KvOrder():
            return _with_copied_layers(message)
        case Held():
            message = message._replace(start=1, stop=2)
            return _matched(message)
        case Batch() | StepOrder():
            return _matched(message)
        case Enrol():
            return message._replace(start=0, stop=0) if message.start >= message.stop else message
        case Load() | Warm() | Loaded():
            return _with_layers(message)
    return message


def _with_copied_layers(message: KvPiece | Kept | KvOrder) -> Message:
    if isinstance(message, KvPiece | KvOrder):
        message = message._replace(start=0, stop=max(1, message.stop))
    return message._replace(start_layer=1, stop_layer=2)


def _with_layers(message: Load | Warm | Loaded) -> Message:
    """The message with layers, or for a process that drafts without; with as many ranks as weights."""
    if isinstance(message, Loaded):
        return message._replace(rank_weights=message.rank_pids)
    if isinstance(message, Load) and message.drafts:
        return message._replace(start=0, stop=0)
    return message._replace(start=1, stop=2) if message.start >= message.stop else message


def _matched(message: Any) -> Any:
    """The message with distinct sequences and one position for each."""
    ids = tuple(dict.fromkeys(message.sequences))
    matched = message._replace(sequences=ids, positions=(message.positions * len(ids))[: len(ids)])
    if isinstance(message, StepOrder):
        wanted = 0 if message.result == "hidden" else 1
        matched = matched._replace(rows=len(ids), wanted_rows=wanted)
    return matched if isinstance(message, Held) else _with_result(matched)


def _with_result(message: Any) -> Any:
    """The message with candidates only where it asks for them."""
    return message._replace(candidates=max(1, message.candidates) if message.result == "candidates" else 0)


def messages(*kinds: type) -> st.SearchStrategy[Message]:
    """Valid messages of these kinds, or of every kind."""
    return st.one_of(
        st.builds(
            kind, **{name: field_values(hint) for name, hint in get_type_hints(kind, include_extras=True).items()}
        )
        for kind in kinds or get_args(Message)
    ).map(valid)
