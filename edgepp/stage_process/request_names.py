"""The names by which logs know the requests whose sequences a stage holds."""

from __future__ import annotations

import logging

from edgepp.stage_process.frames import Frame
from edgepp.stage_process.model_runner import ModelRunner
from edgepp.stage_process.sequence_state import Key, keys_of, rekey
from edgepp.structured_log import fields
from edgepp.wire.messages.data import Forward

log = logging.getLogger("edgepp.stage")


class RequestNames:
    """Name of the request of each sequence. Implements ``SequenceState``."""

    def __init__(self, runner: ModelRunner) -> None:
        self._names: dict[Key, str] = {}
        runner.sequence_states.append(self)

    def note(self, frame: Frame) -> None:
        """Note the name in a frame that opens a sequence."""
        if isinstance(frame, Forward) and frame.request:
            self._names[frame.epoch, frame.sequence] = frame.request
            self._log("sequence_opened", (frame.epoch, frame.sequence), position=frame.position, rows=frame.rows)

    def failed(self, key: Key, reason: str) -> None:
        """Log that a sequence failed."""
        extra = fields("sequence_failed", self._names.get(key, ""), epoch=key[0], sequence=key[1], reason=reason)
        log.warning("sequence %d failed: %s", key[1], reason, extra=extra)

    def fork(self, source: Key, key: Key, length: int) -> None:
        """Do nothing: the frame that opens a copy has the name of its request."""

    def free(self, key: Key) -> None:
        """Forget the name of a sequence."""
        if key in self._names:
            self._log("sequence_freed", key)
            del self._names[key]

    def forget(self, epoch: int) -> None:
        """Forget the names of an epoch."""
        for key in keys_of(self._names, epoch):
            self.free(key)

    def inherit(self, old: int, new: int) -> None:
        """Move the names of the epoch ``old`` to the epoch ``new``."""
        rekey(self._names, old, new)

    def _log(self, event: str, key: Key, **facts: int) -> None:
        if log.isEnabledFor(logging.INFO):
            text = event.replace("_", " ")
            log.info(
                "%s: %d", text, key[1], extra=fields(event, self._names[key], epoch=key[0], sequence=key[1], **facts)
            )
