"""A zeroconf instance on every network interface, with a thread of its own that opens, replaces and closes it."""

from __future__ import annotations

import contextlib
import logging
import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zeroconf import Zeroconf

_CLOSE_S = 15.0

log = logging.getLogger(__name__)


class MdnsResponder(ABC):
    """A zeroconf instance on every interface, opened, replaced and closed by a thread of its own.

    ``refresh`` replaces the instance, since its sockets belong to addresses that may be gone. When an instance cannot
    be opened, one warning is logged, and the next ``refresh`` tries again.
    """

    def __init__(self, consequence: str) -> None:
        """``consequence``: what does not work without multicast, for the warning; empty for no warning."""
        self._consequence = consequence
        self._changed = threading.Condition()
        self._zeroconf: Zeroconf | None = None
        self._stale = True
        self._closing = False
        self._warned = False
        self._thread = threading.Thread(target=self._run, name="discovery", daemon=True)
        self._thread.start()

    def refresh(self) -> None:
        """Replace the instance, after an address changed or the machine slept. Does not block."""
        with self._changed:
            self._stale = True
            self._changed.notify_all()

    def close(self) -> None:
        """Withdraw from the network and end the thread; takes about half a second."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(_CLOSE_S)

    @abstractmethod
    def _begin(self, zeroconf: Zeroconf) -> None:
        """Begin to use a new instance."""

    @abstractmethod
    def _has_work(self) -> bool:
        """Whether ``_work`` has something to do. Called with the lock held."""

    def _wait_s(self) -> float | None:
        """Seconds after which to ask ``_has_work`` again unless something changes; None for never. With the lock."""
        return None

    @abstractmethod
    def _work(self, zeroconf: Zeroconf) -> None:
        """Do the pending work."""

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._is_due, self._wait_s())
                if self._closing:
                    break
                if not self._is_due():
                    continue
                stale, self._stale = self._stale, False
            self._attempt(stale=stale)
        self._end()

    def _is_due(self) -> bool:
        return self._closing or self._stale or (self._zeroconf is not None and self._has_work())

    def _attempt(self, *, stale: bool) -> None:
        import zeroconf

        try:
            if stale:
                self._end()
                opened = _open_zeroconf()
                with self._changed:
                    self._zeroconf = opened
                self._begin(opened)
            elif self._zeroconf is not None:
                self._work(self._zeroconf)
            self._warned = False
        except (OSError, RuntimeError, zeroconf.Error) as error:
            self._warn(error)
            self._end()

    def _warn(self, error: Exception) -> None:
        if self._consequence and not self._warned:
            reason = str(error) or type(error).__name__
            log.warning("multicast DNS does not work (%s), so %s; use --peer HOST:PORT", reason, self._consequence)
        self._warned = True

    def _end(self) -> None:
        import zeroconf

        with self._changed:
            old, self._zeroconf = self._zeroconf, None
        if old is not None:
            # An instance whose network is gone may fail to send its goodbye, which nobody would receive.
            with contextlib.suppress(OSError, zeroconf.Error):
                old.close()


def _open_zeroconf() -> Zeroconf:
    """Open an instance on every interface with IPv4 and IPv6, or with IPv4 where the system has no IPv6.

    Raises:
        OSError: port 5353 cannot be bound.
        RuntimeError: the machine has no network interface.
    """
    from zeroconf import InterfaceChoice, IPVersion, Zeroconf

    # zeroconf logs each interface without multicast, and text from the network; our own warning is enough.
    logging.getLogger("zeroconf").setLevel(logging.CRITICAL)
    try:
        return Zeroconf(InterfaceChoice.All, ip_version=IPVersion.All)
    except OSError:
        return Zeroconf(InterfaceChoice.All, ip_version=IPVersion.V4Only)
