"""Log lines, as text or as JSON, in a command and in the processes that it starts.

A JSON line has ``time``, ``level``, ``node``, ``stage`` (the layers of a stage process), ``request`` (the id of a
request, where there is one), ``event``, ``logger`` and ``message``, and further fields that depend on the event. Text
from elsewhere cannot begin a line of its own. What people ask and are answered is never logged, and neither are keys.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

from edgepp.printable import PrintableFormatter, json_line, one_line

LogFormat: TypeAlias = Literal["text", "json"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]
_FIELDS = "edgepp_fields"
_MAX_TEXT = 2000


@dataclass(frozen=True)
class LogOptions:
    """How a process logs."""

    format: LogFormat = "text"
    level: LogLevel = "warning"


@dataclass
class _Process:
    """What every line of this process says."""

    options: LogOptions = LogOptions()
    node: str = ""
    stage: str = ""


_process = _Process()


def configure(options: LogOptions) -> None:
    """Log to standard error in this process, and let the processes that it starts do the same."""
    _process.options = options
    handler = logging.StreamHandler(sys.stderr)
    as_json = options.format == "json"
    handler.setFormatter(
        JsonFormatter() if as_json else PrintableFormatter("%(asctime)s %(name)s %(levelname)s %(message)s")
    )
    logging.basicConfig(level=options.level.upper(), handlers=[handler], force=True)
    for name in ("asyncio", "uvicorn", "zeroconf"):  # their own details are of no use here
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger(name).level))


def current() -> LogOptions:
    """How this process logs."""
    return _process.options


def name_process(node: str, stage: str = "") -> None:
    """Let every line name the node, and in a stage process its layers."""
    _process.node, _process.stage = node, stage


def fields(event: str, request: str = "", **facts: Any) -> dict[str, dict[str, Any]]:
    """The argument ``extra`` of a log call: the name of the event, the request's id, and further fields."""
    return {_FIELDS: {"event": event, "request": request, **facts}}


class JsonFormatter(logging.Formatter):
    """Formats each record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        given: Mapping[str, Any] = getattr(record, _FIELDS, {})
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "node": _process.node,
            "stage": _process.stage,
            "request": given.get("request", ""),
            "event": given.get("event") or one_line(str(record.msg), _MAX_TEXT),
            "logger": record.name,
            "message": one_line(record.getMessage(), _MAX_TEXT),
        }
        line |= {name: _plain(value) for name, value in given.items() if name not in line}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json_line(line)


def _plain(value: Any) -> Any:
    """``value`` as JSON has it; anything else as text."""
    if value is None or isinstance(value, bool | int | float):
        return value
    return one_line(str(value), _MAX_TEXT)
