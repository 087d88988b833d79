"""Estimated seconds until a loading model is ready, from the progress so far. Pure."""

from __future__ import annotations

from dataclasses import dataclass

_MIN_FRACTION = 0.02
"""The progress from which an estimate is made."""


@dataclass
class LoadEstimate:
    """Follows one load after another; a fraction that falls begins a new one."""

    fraction: float = 0.0
    """The loaded part of the model, from 0 to 1."""
    _began_s: float = 0.0
    _began: float = 0.0
    _seen_s: float = 0.0

    def note(self, fraction: float, now_s: float) -> None:
        """Note the loaded part of the model at the time ``now_s``."""
        if fraction < self.fraction or not self._seen_s:
            self._began, self._began_s = fraction, now_s
        self.fraction, self._seen_s = fraction, now_s

    @property
    def eta_s(self) -> float | None:
        """Seconds until all is loaded at the mean rate so far; None where too little is known."""
        done, took_s = self.fraction - self._began, self._seen_s - self._began_s
        if done < _MIN_FRACTION or took_s <= 0:
            return None
        return (1.0 - self.fraction) * took_s / done
