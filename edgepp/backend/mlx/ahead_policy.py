"""The decision whether to compute a sequence one step ahead: by the drawn tokens that the engine confirmed. Pure."""

from __future__ import annotations

from dataclasses import dataclass

_MAX_NEEDED = 64


@dataclass
class AheadPolicy:
    """Policy for one sequence: steps are computed ahead while the engine draws the same tokens as the GPU."""

    drawn: int | None = None
    """The token that the GPU drew behind the newest position; None if the GPU drew no token."""
    in_turn: int = 0
    """Number of consecutive tokens that engine and GPU drew alike, up to the newest."""
    needed: int = 1
    """Least ``in_turn`` for a step ahead; each dropped step doubles this number, many equal tokens halve it."""

    def take(self, token: int) -> bool:
        """Note the engine's next ``token``; returns whether the step after this token should be computed ahead."""
        if self.drawn is not None:
            self.in_turn = self.in_turn + 1 if token == self.drawn else 0
        self.drawn = None
        if self.in_turn >= 4 * self.needed:
            self.needed = max(1, self.needed // 2)
        return self.in_turn >= self.needed

    def dropped(self) -> None:
        """Note that a step ahead was computed in vain."""
        self.needed = min(_MAX_NEEDED, 2 * self.needed)
