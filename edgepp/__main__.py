"""``python -m edgepp``: the same as the ``edgepp`` command."""

from edgepp.cli import main

if __name__ == "__main__":
    main()
