"""``python -m edgepp``: the same as the ``edgepp`` command."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # `python -m` puts the current folder there, from which nothing may be imported
    from edgepp.cli import main

    main()
