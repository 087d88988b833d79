"""The takeover of an engine's requests by another ring, whose stages first rebuild what they lack."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from edgepp.engine.rebuilding import Embed, Rebuilding
from edgepp.engine.ring import Ring
from edgepp.engine.suspended_sequences import SuspendedSequence
from edgepp.error_boundary import failure
from edgepp.errors import EdgeppError


@dataclass(frozen=True)
class ResumeOrder:
    """An order of another thread to go on over ``ring``; ``done`` is set when the ring has taken over."""

    ring: Ring
    done: Future[None] = field(default_factory=Future)

    def refuse(self, error: EdgeppError) -> None:
        """Close the ring, and tell whoever waits why the ring does not take over."""
        self.ring.close()
        self.done.set_exception(error)


class Takeover:
    """One takeover, until ``end``; the ``former`` ring stays open for it. Belongs to the engine thread."""

    def __init__(self, order: ResumeOrder, former: Ring, suspended: Sequence[SuspendedSequence], embed: Embed) -> None:
        """Begin to rebuild the ``suspended`` sequences on the stages of the ring that ``order`` brings."""
        self._former = former
        self._done = order.done
        try:
            self.rebuilding = Rebuilding(order.ring, former, suspended, embed)
        except BaseException as error:
            self.end(failure(error, "the takeover by another pipeline"))
            raise

    def look(self) -> bool:
        """Whether the stages hold what could be rebuilt. Call this in each turn of the engine thread.

        It also polls the former ring, so that its stages do not forget what they still send.
        """
        self._former.poll(0.0)
        return self.rebuilding.done

    def end(self, error: EdgeppError | None = None) -> None:
        """Close the former ring, and tell whoever waits that the new ring has taken over, or by ``error`` why not."""
        self._former.close()
        if error is None:
            self._done.set_result(None)
        else:
            self._done.set_exception(error)
