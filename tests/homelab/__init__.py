"""edgepp on real machines over SSH, from nothing to a report: `make homelab HOSTS="mac1 mac2 pi"`.

Each host is checked, gets edgepp in a folder of its own, is paired, and runs `edgepp selftest`; the reports are
collected, and whatever happens, also at Ctrl-C, all that was started and copied is taken away again.
"""
