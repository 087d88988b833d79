"""Coverage-guided fuzzing of all that reads bytes of others: ``make fuzz``.

A target is a function of bytes that raises where an invariant is broken: not only no crash, but bounded time and
memory, typed errors, and round trips. ``tests/loopback/test_fuzz_targets.py`` runs each target over its seeds, so that
targets stay right; ``python -m tests.fuzz`` runs them under atheris, in one child process each.

    python -m tests.fuzz --minutes 10 --target wire
    python -m tests.fuzz.replay TARGET FILE          run a target once over the input that broke an invariant
"""
