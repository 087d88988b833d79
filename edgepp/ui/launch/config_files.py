"""Changes of a client's configuration file, which can be undone: edgepp's folder keeps the former values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgepp.errors import EdgeppError
from edgepp.safe_files import open_regular, read_whole, write_atomically
from edgepp.ui.launch.settings import ConfigFile

_MAX_BYTES = 4 << 20
_ABSENT = "absent"
Change = list[Any]
"""Change of a JSON object: keys that lead to a value, the new value, and ``[old value]`` or ``_ABSENT``."""


def write_config(config: ConfigFile, record: Path) -> Path:
    """Write the settings that the client needs, after undoing earlier ones; returns the path of the client's file.

    ``record`` is the file in which edgepp keeps what it changed, for ``undo_config``.

    Raises:
        EdgeppError: a file cannot be read or written, or the client's file is in a form that cannot be merged.
    """
    undo_config(record)
    path = config.path.expanduser().resolve()  # a link stays a link
    before = _read(path)
    if config.kind == "json" and not isinstance(config.content, str):
        after, changes = _merged(path, before, config.content)
    else:
        after, changes = _text_after(path, before, config), []
    folders = [str(folder) for folder in path.parents if not folder.exists()]
    told = {"path": str(path), "before": before, "after": after, "changes": changes, "folders": folders}
    _write(record, json.dumps(told))
    _write(path, after)
    return path


def undo_config(record: Path) -> Path | None:
    """Undo the changes in ``record``; returns the path of the client's file, or None where nothing was written.

    Raises:
        EdgeppError: a file cannot be read or written, or has been changed so that nothing can be undone.
    """
    stored = _read(record)
    if stored is None:
        return None
    told = _loaded(record, stored)
    try:
        path, before, after, changes = Path(told["path"]), told["before"], told["after"], told["changes"]
    except (KeyError, TypeError) as error:
        raise EdgeppError(f"{record} is damaged", "remove it, and undo the change by hand") from error
    now = _read(path)
    if now == after and before is None:
        path.unlink()
        _remove_empty(told.get("folders"))
    elif now == after:
        _write(path, before)
    elif now is not None and changes:
        _write(path, _unmerged(path, now, changes))
    elif now is not None and (added := _added(before or "", after)) and added in now:
        _write(path, now.replace(added, "", 1))
    elif now is not None:
        raise EdgeppError(f"{path} was changed after --write", f"remove the settings by hand, then remove {record}")
    record.unlink(missing_ok=True)
    return path


def _remove_empty(folders: object) -> None:
    """Remove the ``folders`` that were made for a file, the innermost first, up to a folder that has other files."""
    with suppress(OSError):
        for folder in folders if isinstance(folders, list) else []:
            Path(folder).rmdir()


def _added(before: str, after: str) -> str:
    """The text that was added to a list; empty for a file that was replaced."""
    return after[len(before) :].lstrip("\n") if before and after.startswith(before) else ""


def _text_after(path: Path, before: str | None, config: ConfigFile) -> str:
    added = str(config.content)
    if config.kind == "whole" or not before or not before.strip():
        return added
    if not before.lstrip().startswith(("-", "#")):
        raise EdgeppError(f"{path} is no list of entries that begin with '-'", f"add to it by hand: {added.strip()}")
    return before + ("" if before.endswith("\n") else "\n") + added


def _merged(path: Path, before: str | None, content: Mapping[str, Any]) -> tuple[str, list[Change]]:
    root = _loaded(path, before) if before and before.strip() else {}
    changes: list[Change] = []
    _merge(root, content, [], changes)
    return json.dumps(root, indent=2, ensure_ascii=False) + "\n", changes


def _merge(into: dict[str, Any], content: Mapping[str, Any], at: list[str], changes: list[Change]) -> None:
    for name, value in content.items():
        if isinstance(value, Mapping) and isinstance(into.get(name, {}), dict):
            _merge(into.setdefault(name, {}), value, [*at, name], changes)
        else:
            changes.append([[*at, name], value, [into[name]] if name in into else _ABSENT])
            into[name] = value


def _unmerged(path: Path, now: str, changes: list[Change]) -> str:
    """The text ``now`` without the written values that are still there, and without objects that become empty."""
    root = _loaded(path, now)
    for keys, value, before in changes:
        chain: list[Any] = [root]
        for key in keys[:-1]:
            chain.append(chain[-1].get(key) if isinstance(chain[-1], dict) else None)
        if not isinstance(chain[-1], dict) or chain[-1].get(keys[-1]) != value:
            continue
        if before == _ABSENT:
            del chain[-1][keys[-1]]
        else:
            chain[-1][keys[-1]] = before[0]
        for holder, key in reversed(list(zip(chain, keys[:-1], strict=False))):
            if holder.get(key) == {}:
                del holder[key]
    return json.dumps(root, indent=2, ensure_ascii=False) + "\n"


def _loaded(path: Path, text: str) -> dict[str, Any]:
    try:
        root = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EdgeppError(
            f"{path} is not plain JSON: it has comments, or is damaged", "add the lines that --print shows by hand"
        ) from error
    if not isinstance(root, dict):
        raise EdgeppError(f"{path} is no JSON object", "add the lines that --print shows by hand")
    return root


def _read(path: Path) -> str | None:
    try:
        with open_regular(path) as file:
            return read_whole(file, _MAX_BYTES).decode()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise EdgeppError(
            f"cannot read {path}: {getattr(error, 'strerror', None) or error}", "check the file and its permissions"
        ) from error


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = path.stat().st_mode if path.exists() else None
        write_atomically(path, text.encode())
        if mode is not None:
            path.chmod(mode & 0o777)
    except OSError as error:
        raise EdgeppError(f"cannot write {path}: {error.strerror}", "let this user write it") from error
