"""``python -m edgepp``: the same as the ``edgepp`` command."""

import sys

from edgepp.child import trusted_path

if __name__ == "__main__":
    sys.path[:] = trusted_path()  # `python -m` put the current folder first
    from edgepp.cli import main

    main()
