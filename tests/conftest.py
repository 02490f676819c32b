"""Puts this folder on the path, so that every test finds ``tiny_data``; one thread a process."""

import os

# The models of the tests are so small that a second thread only waits. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
