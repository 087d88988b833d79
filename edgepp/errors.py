"""Every error that edgepp raises, as one tree.

EdgeppError
├── UsageError            an argument or option is not valid (exit status 2; all others: 1)
│   ├── PromptRefused         the model's chat template does not take the conversation
│   └── ContextExceeded       prompt and answer do not fit into the context
├── ModelError            a model is missing, damaged, or of an unsupported family
├── PlanError             the stages do not cover each layer once, or the nodes cannot hold the model
├── PairingError          a node is not admitted: not invited, wrong code or key, revoked
├── PeerLost              an address does not answer, or the connection to the coordinator ended
├── NotReady              the cluster cannot answer now: it loads, plans again, or lacks machines
├── Overloaded            too much is under way already; the same may succeed later
├── ProtocolError         bytes that break the wire protocol
│   ├── LocalProtocolError    this process was about to send the bytes
│   └── RemoteProtocolError   the bytes arrived; the frame is counted and dropped
├── StageError            a stage ended an answer; the message names the stage and its node
│   ├── StageLost             the stage died or stopped answering
│   ├── StageFault            the stage answered that it cannot do the step
│   └── PoisonedRequest       the request was under way each time that stages failed; it is not tried again
└── InternalError         a fault of edgepp itself, with a report file
"""

from __future__ import annotations


class EdgeppError(Exception):
    """One sentence that says what is wrong; ``hint`` says what to do next. A traceback ends with both."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    @property
    def hint(self) -> str:
        """What to do next; empty if there is no advice."""
        return self._hint

    @hint.setter
    def hint(self, hint: str) -> None:
        self._hint = hint
        self.__notes__ = [f"  try: {hint}"] if hint else []


class UsageError(EdgeppError):
    """An argument or option is not valid; ``parameter`` is the name of the option, where one alone is to blame."""

    def __init__(self, message: str, hint: str = "", *, parameter: str | None = None) -> None:
        super().__init__(message, hint)
        self.parameter = parameter


class PromptRefused(UsageError):  # noqa: N818 - named as in logs
    """The model's chat template does not take the conversation; the message ends with the template's own sentence."""


class ContextExceeded(UsageError):  # noqa: N818 - named as in logs
    """The prompt leaves no room for an answer."""

    def __init__(self, prompt_tokens: int, context: int, *, at_least: bool = False) -> None:
        """Say how long the prompt is, and how long it may be.

        Args:
            prompt_tokens: Tokens of the prompt.
            context: Tokens that prompt and answer may have together.
            at_least: Whether the prompt has ``prompt_tokens`` or more, since it was not encoded.
        """
        bound = "at least " if at_least else ""
        super().__init__(
            f"a prompt of {bound}{prompt_tokens} tokens and an answer do not fit into the context of {context} tokens",
            "shorten the prompt",
        )
        self.prompt_tokens = prompt_tokens
        self.context = context


class ModelError(EdgeppError):
    """A model is missing, damaged, or of an unsupported family."""


class PlanError(EdgeppError):
    """The stages do not cover each layer exactly once, or the nodes cannot hold the model."""


class PairingError(EdgeppError):
    """A node is not admitted: it was not invited, has a wrong code or key, or was revoked."""


class PeerLost(EdgeppError):  # noqa: N818 - named as in logs and in other systems
    """An address does not answer, or the connection to the coordinator ended."""


class NotReady(EdgeppError):  # noqa: N818
    """The cluster cannot answer now: it loads, plans again, or lacks machines."""


class Overloaded(EdgeppError):  # noqa: N818
    """Too much is under way already; the same may succeed later."""


class ProtocolError(EdgeppError):
    """Bytes that break the wire protocol."""


class LocalProtocolError(ProtocolError):
    """This process was about to break the wire protocol, which is a bug of edgepp."""


class RemoteProtocolError(ProtocolError):
    """Another process broke the wire protocol; its frame is dropped."""


class StageError(EdgeppError):
    """A stage ended an answer."""


class StageLost(StageError):  # noqa: N818
    """A stage died or stopped answering.

    ``hanging`` is the index of a stage that does not answer and may still run, ``gone`` of one whose process has ended.
    """

    def __init__(self, message: str, hint: str = "", *, hanging: int | None = None, gone: int | None = None) -> None:
        """Make the error of a lost stage."""
        super().__init__(message, hint)
        self.hanging, self.gone = hanging, gone


class StageFault(StageError):  # noqa: N818
    """A stage answered that it cannot do the step."""


class PoisonedRequest(StageError):  # noqa: N818
    """A request was under way each time that stages failed, at last as the only suspect; it is not tried again."""


class InternalError(EdgeppError):
    """A fault of edgepp itself: an exception that nothing expected."""


def check_whole(name: str, value: object, low: int, high: int | None = None) -> None:
    """Check that the option ``name`` is a whole number from ``low`` to ``high``, or without bound if that is None.

    Raises:
        UsageError: the value is another one, or of another type.
    """
    if type(value) is not int:
        raise UsageError(f"{name} must be a whole number, not {value!r:.40}", parameter=name)
    if value < low or (high is not None and value > high):
        bounds = f"be at least {low}" if high is None else f"lie between {low} and {high}"
        raise UsageError(f"{name} must {bounds}, not {value}", parameter=name)


def check_choice(name: str, value: object, known: tuple[object, ...]) -> None:
    """Check that the option ``name`` has one of the ``known`` values.

    Raises:
        UsageError: the value is none of these.
    """
    if value not in known:
        hint = f"choose one of {', '.join(map(str, known))}"
        raise UsageError(f"{name} may not be {value!r:.40}", hint, parameter=name)
