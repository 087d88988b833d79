"""Failures of requests, in terms that every API translates into its own: a kind, a sentence, and the parameter."""

from __future__ import annotations

from typing import Literal, TypeAlias

from edgepp.errors import EdgeppError

FailureKind: TypeAlias = Literal[
    "invalid_request",  # 400
    "context_length_exceeded",  # 400
    "unsupported_content",  # 400
    "authentication",  # 401
    "permission",  # 403
    "not_found",  # 404
    "method_not_allowed",  # 405
    "request_too_large",  # 413
    "unsupported_media_type",  # 415
    "rate_limited",  # 429
    "internal",  # 500
    "not_implemented",  # 501
    "loading",  # 503: the cluster loads or plans again
    "overloaded",  # 503, and 529 in Anthropic's API
    "stopped",  # 503: the server closes
]
STATUS: dict[FailureKind, int] = {
    "invalid_request": 400,
    "context_length_exceeded": 400,
    "unsupported_content": 400,
    "authentication": 401,
    "permission": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "request_too_large": 413,
    "unsupported_media_type": 415,
    "rate_limited": 429,
    "internal": 500,
    "not_implemented": 501,
    "loading": 503,
    "overloaded": 503,
    "stopped": 503,
}
"""The HTTP status of each kind, where an API has no other."""


class RequestError(EdgeppError):
    """A request that cannot be answered, or an answer that ended early."""

    def __init__(
        self,
        kind: FailureKind,
        message: str,
        hint: str = "",
        *,
        parameter: str | None = None,
        retry_after_s: float | None = None,
        prompt_tokens: int | None = None,
        context: int | None = None,
    ) -> None:
        """Make a failure.

        Args:
            kind: What is wrong; each API has its own status and name for it.
            message: One sentence for people.
            hint: What to do next.
            parameter: The field of the body that is wrong, like ``messages[2].content``.
            retry_after_s: Seconds after which the same request may succeed.
            prompt_tokens: For ``context_length_exceeded``: the tokens of the prompt.
            context: For ``context_length_exceeded``: the tokens that prompt and answer may have together.
        """
        super().__init__(message, hint)
        self.kind = kind
        self.parameter = parameter
        self.retry_after_s = retry_after_s
        self.prompt_tokens = prompt_tokens
        self.context = context

    @property
    def status(self) -> int:
        """The HTTP status."""
        return STATUS[self.kind]


def not_allowed() -> RequestError:
    """The refusal of a change of the cluster by somebody who may not make it (``access.administration``)."""
    return RequestError(
        "permission",
        "this changes the cluster, which needs a key that may administer it",
        "make one with `edgepp keys add NAME --admin`, or open the page on the machine that serves",
    )
