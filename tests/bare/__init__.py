"""Checks in a bare Debian, outside CI, since each takes minutes: install.sh, and the service under a real systemd.

They need Linux, root and debootstrap (`apt install debootstrap systemd-container`). Roots are kept in ``build/bare``.
Each check runs in a network namespace of its own, where only loopback is reached.
"""
