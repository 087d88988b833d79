"""Everything edgepp can say is wrong, as one tree.

EdgeppError
├── UsageError            a command line or an option makes no sense (exit status 2)
├── ModelError            a model is absent, damaged, or of a family that does not fit a pipeline
├── PlanError             the stages at hand do not tile the model, or the nodes cannot hold it
├── PairingError          a node may not take part: not invited, wrong code or key, revoked
├── PeerLost              nobody answers at an address, or a connection to the coordinator ended
├── ProtocolError         bytes that break the wire protocol
│   ├── LocalProtocolError    we were about to send them
│   └── RemoteProtocolError   they arrived; the frame is counted and dropped
├── StageError            a stage ended an answer; names the stage and its node
│   ├── StageLost             it died or stopped answering
│   └── StageFault            it answered that it cannot do the step
└── InternalError         a fault of edgepp itself, with a report that can be sent
"""

from __future__ import annotations


class EdgeppError(Exception):
    """One sentence of what is wrong and, in ``hint``, what to do next; a traceback ends with both."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    @property
    def hint(self) -> str:
        """What to do next; empty where nothing can be advised."""
        return self._hint

    @hint.setter
    def hint(self, hint: str) -> None:
        self._hint = hint
        self.__notes__ = [f"  try: {hint}"] if hint else []


class UsageError(EdgeppError):
    """A command line or an option makes no sense."""


class ModelError(EdgeppError):
    """A model is absent, damaged, or of a family that does not fit a pipeline."""


class PlanError(EdgeppError):
    """The stages at hand do not tile the model exactly once, or the nodes cannot hold it."""


class PairingError(EdgeppError):
    """A node may not take part: it was not invited, has a wrong code or key, or was revoked."""


class PeerLost(EdgeppError):  # noqa: N818 - the field says "lost", and so do the logs
    """Nobody answers at an address, or a connection to the coordinator ended."""


class ProtocolError(EdgeppError):
    """Bytes that break the wire protocol."""


class LocalProtocolError(ProtocolError):
    """This side was about to break the protocol: a bug here."""


class RemoteProtocolError(ProtocolError):
    """The other side broke the protocol: its frame is dropped."""


class StageError(EdgeppError):
    """A stage ended an answer."""


class StageLost(StageError):  # noqa: N818
    """A stage died or stopped answering."""


class StageFault(StageError):  # noqa: N818
    """A stage answered that it cannot do the step."""


class InternalError(EdgeppError):
    """A fault of edgepp itself: an exception that nothing expected."""
