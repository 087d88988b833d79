"""The parts of ``bench.soak``: a cluster of processes, faults drawn at random, and questions with known answers."""
