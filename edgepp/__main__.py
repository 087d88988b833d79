"""``python -m edgepp``: the same as the ``edgepp`` command.

From the first statement on, Ctrl-C ends the process without a traceback, also while the command line is imported.
"""

import _signal  # type: ignore[import-not-found]  # `signal` itself takes milliseconds
import os
import sys
from types import FrameType


def main() -> None:
    """Entry point of the ``edgepp`` command."""
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _leave_at_once)
    from edgepp.cli import main as run

    run()


def _leave_at_once(number: int, _frame: FrameType | None) -> None:
    os._exit(128 + number)


if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # `python -m` puts the current folder there, from which nothing may be imported
    main()
