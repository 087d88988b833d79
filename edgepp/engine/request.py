"""A request: its options and its state. Pure data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

import numpy as np

from edgepp.engine.prefix_cache import Ids
from edgepp.engine.request_status import RequestStatus
from edgepp.engine.timing import Timing
from edgepp.errors import UsageError

MAX_RECOVERIES = 2
"""Losses of stages that a request survives: it may be itself what makes them fail."""
MAX_BIASES = 1024
"""Tokens that ``logit_bias`` may name."""
MAX_LOGPROBS = 20
"""Likeliest tokens that may be reported per place."""
MAX_CONSTRAINT_BYTES = 1 << 18
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1024
"""Characters per stop string, which bounds the text held back because it could become one."""


@dataclass(frozen=True)
class SamplingOptions:
    """How a token is drawn from logits; the defaults are greedy. Filters act in the order of the fields.

    ``frequency_penalty``, ``presence_penalty`` and ``logit_bias`` are OpenAI's. With c[j] the times that token j has
    been generated in this answer (the prompt does not count):

        logits[j] += logit_bias[j] - c[j] * frequency_penalty - (c[j] > 0) * presence_penalty
    """

    temperature: float = 0.0
    repetition_penalty: float = 1.0
    top_p: float = 1.0
    min_p: float = 0.0
    top_k: int = 0
    seed: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Pairs of a token id and the number added to its logit."""
    logprobs: int | None = None
    """How many of the likeliest tokens to report besides the chosen token's log-probability; None reports nothing."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("temperature", 0.0, 100.0),
            ("repetition_penalty", 0.01, 100.0),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
            ("top_k", 0, 1 << 31),
            ("seed", -(1 << 63), (1 << 64) - 1),
            ("frequency_penalty", -2.0, 2.0),
            ("presence_penalty", -2.0, 2.0),
            ("logprobs", 0, MAX_LOGPROBS),
        ):
            value = getattr(self, name)
            if value is None and name in ("seed", "logprobs"):
                continue
            if isinstance(low, int) and type(value) is not int:
                raise UsageError(f"{name} must be a whole number, not {value!r:.40}", parameter=name)
            if not _is_number(value):
                raise UsageError(f"{name} must be a number, not {value!r:.40}", parameter=name)
            if not low <= value <= high:
                raise UsageError(f"{name} must lie between {low} and {high}, not {value}", parameter=name)
        self._check_bias()

    def check_bias(self, vocabulary: int) -> None:
        """Hold ``logit_bias`` to the ids of a model with ``vocabulary`` tokens.

        Raises:
            UsageError: ``logit_bias`` names a token that the model does not have.
        """
        for token, _ in self.logit_bias:
            if token >= vocabulary:
                raise UsageError(
                    f"logit_bias names token {token}, and the model has tokens 0 to {vocabulary - 1}",
                    parameter="logit_bias",
                )

    def _check_bias(self) -> None:
        if not isinstance(self.logit_bias, tuple) or any(
            not isinstance(pair, tuple) or len(pair) != 2 for pair in self.logit_bias
        ):
            raise UsageError("logit_bias must be a tuple of pairs of a token id and a number", parameter="logit_bias")
        if len(self.logit_bias) > MAX_BIASES:
            raise UsageError(
                f"logit_bias may name {MAX_BIASES} tokens, not {len(self.logit_bias)}", parameter="logit_bias"
            )
        for token, bias in self.logit_bias:
            if type(token) is not int or token < 0:
                raise UsageError(
                    f"logit_bias names tokens by their ids, and {token!r:.40} is none", parameter="logit_bias"
                )
            if not _is_number(bias) or not -100 <= bias <= 100:
                raise UsageError(
                    f"the logit_bias of token {token} must lie between -100 and 100, not {bias!r:.40}",
                    parameter="logit_bias",
                )
        if len(dict(self.logit_bias)) != len(self.logit_bias):
            raise UsageError("logit_bias names a token twice", parameter="logit_bias")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


FinishReason = Literal["stop", "length", "cancelled"]

ConstraintKind = Literal["json_schema", "json", "regex", "grammar"]
KINDS: tuple[ConstraintKind, ...] = get_args(ConstraintKind)


@dataclass(frozen=True)
class Constraint:
    """What the text of an answer must match: a JSON schema, any JSON object, a regular expression or a Lark grammar.

    ``text`` is the schema, expression or grammar; for ``json``, ``text`` is empty. ``ConstraintCompiler`` checks it.

    Schemas, expressions, and the strings and terminals of a grammar match text, never special tokens: those that the
    tokenizer marks as special, and added tokens with names like ``<tool_call>``. A rule of a grammar names a special
    token by its id, ``<[128010]>``, or as ``<|python_tag|>`` where angle brackets enclose the name. A string equal to
    such a name fails when the answer reaches it; ``model.text.control_tokens.grammar_literal`` is right whether or not
    the tokenizer has such a token. Calls between ``<tool_call>`` (151657) and ``</tool_call>`` (151658), after text:

        start: TEXT? (<[151657]> json <[151658]>)*
        TEXT: /(.|\\n)+/
        json: %json {"type": "object", "x-guidance": {"whitespace_flexible": false}}

    A schema inside a grammar allows any white space, which a model may write for ever, unless it is told as above not
    to. Tokens that end an answer are allowed where the grammar may end.
    """

    kind: ConstraintKind
    text: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"a constraint is one of {', '.join(KINDS)}, not {self.kind!r:.40}")
        if not isinstance(self.text, str):
            raise UsageError(
                f"the {self.kind} of a constraint is text, not {self.text!r:.40}", "write a schema by json.dumps"
            )
        if (self.kind == "json") is not (self.text == ""):
            raise UsageError(
                "the constraint json takes no text" if self.text else f"the constraint {self.kind} is empty"
            )
        try:
            size = len(self.text.encode())
        except UnicodeEncodeError as error:
            raise UsageError(f"the {self.kind} is not Unicode text: half a surrogate pair stands alone") from error
        if size > MAX_CONSTRAINT_BYTES:
            raise UsageError(f"a constraint may have {MAX_CONSTRAINT_BYTES} bytes, and this {self.kind} has {size}")


@dataclass(frozen=True)
class GenerateOptions:
    """When an answer ends, how its tokens are drawn, and what its text must match."""

    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    constraint: Constraint | None = None
    prompt_logprobs: int | None = None
    """How many of the likeliest tokens to report at each place of the prompt, from 0 to 20, besides the log-probability
    of the prompt's own token; None reports nothing. The whole prompt is then computed: no prefix is reused."""

    def __post_init__(self) -> None:
        if type(self.max_tokens) is not int:
            raise UsageError(f"max_tokens must be a whole number, not {self.max_tokens!r:.40}", parameter="max_tokens")
        if self.max_tokens < 1:
            raise UsageError(f"an answer needs at least 1 token, not {self.max_tokens}", parameter="max_tokens")
        self._check_stop()
        wanted: object = self.prompt_logprobs
        if wanted is not None and (type(wanted) is not int or not 0 <= wanted <= MAX_LOGPROBS):
            raise UsageError(
                f"prompt_logprobs must be a whole number from 0 to {MAX_LOGPROBS}, not {wanted!r:.40}",
                parameter="prompt_logprobs",
            )
        if self.ignore_eos and self.constraint is not None:
            raise UsageError(
                "an answer held to a constraint ends where the constraint does",
                "leave out ignore_eos",
                parameter="ignore_eos",
            )

    def _check_stop(self) -> None:
        stop: object = self.stop
        if not isinstance(stop, tuple) or not all(isinstance(one, str) for one in stop):
            raise UsageError("stop is a tuple of strings", 'write stop=("one", "other")', parameter="stop")
        if len(self.stop) > MAX_STOPS:
            raise UsageError(f"an answer may have {MAX_STOPS} stop strings, not {len(self.stop)}", parameter="stop")
        longest = max(map(len, self.stop), default=0)
        if longest > MAX_STOP_CHARACTERS:
            raise UsageError(
                f"a stop string may have {MAX_STOP_CHARACTERS} characters, and one has {longest}", parameter="stop"
            )


@dataclass(eq=False, kw_only=True)
class Request:
    """One prompt and the state of its answer: everything that ``EngineCore`` knows of a request."""

    id: int
    """In order of arrival, from 1."""
    owner: str
    """The sender. Prefixes are shared only between requests of one owner."""
    ids: list[int]
    """Token ids of the prompt and of the answer so far, to which the driver of the core appends."""
    prompt_tokens: int
    max_tokens: int
    """Tokens that the answer may have."""
    timing: Timing
    status: RequestStatus = RequestStatus.WAITING
    sequence: int = 0
    """The number of its KV cache on the stages: a new one after each preemption, 0 while there is none."""
    source: int = 0
    """The sequence that its own begins as a copy of, until its first step has come back; else 0."""
    reuses: int = 0
    """How many requests before it have begun with the text that it continues."""
    shares: bool = True
    """Whether it may begin with positions of another sequence; else all of its prompt is computed."""
    alone: bool = False
    """Whether to share nothing at its next admission, since a shared beginning failed."""
    turn: int = 0
    """The place of its admission in the order of all admissions."""
    sent: int = 0
    """Positions of its sequence that the stages hold, or will hold once its steps in the ring are computed."""
    settled: int = 0
    """Positions that all stages have computed for certain. A stage that a step has not reached may hold other values at
    later positions, such as those of a guess that was wrong."""
    steps_in_ring: int = 0
    drawing: bool = False
    """Whether its next token is being drawn from a step that came back."""
    recoveries: int = 0
    """How often its stages were lost while they computed for it."""
    guesses: tuple[int, ...] = ()
    """Tokens behind the newest one that are in the ring: in the newest token's step, or each in a step of its own."""
    _array: Ids = field(default_factory=lambda: np.empty(0, np.int32))

    @property
    def tokens(self) -> int:
        """Tokens of the answer so far."""
        return len(self.ids) - self.prompt_tokens

    @property
    def room_to_guess(self) -> int:
        """Number of further guesses that fit into the answer, since one more token is drawn behind the last guess."""
        return self.max_tokens - self.tokens - 1 - len(self.guesses)

    @property
    def is_suspect(self) -> bool:
        """Whether the request may be what makes stages fail; at most one suspect request is computed at a time."""
        return self.recoveries >= MAX_RECOVERIES

    @property
    def capacity(self) -> int:
        """Most positions that the sequence of the request may take."""
        return self.prompt_tokens + self.max_tokens

    def known(self, length: int) -> Ids:
        """The first ``length`` token ids (length,), as an array."""
        if len(self._array) < length:
            self._array = np.asarray(self.ids, np.int32)
        return self._array[:length]


AnyRequest = TypeVar("AnyRequest", bound=Request)
