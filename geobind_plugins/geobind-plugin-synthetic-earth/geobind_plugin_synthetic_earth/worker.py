"""The process that draws: reads a job from standard input, then one range of places per line.

Run as ``python -m geobind_plugin_synthetic_earth.worker`` by :mod:`.writer`. A process of its own
(and not one of :mod:`multiprocessing`) starts cleanly whatever the calling program looks like,
keeps numpy to one thread, and ends by itself when the caller is gone: its standard input closes.
"""

from __future__ import annotations

import json
import pickle
import signal
import sys

from geobind_plugin_synthetic_earth.drawing import Job, draw_places


def main() -> None:
    """Answers every line ``start stop`` with the cells of those places as one line of JSON."""
    # Ctrl-C reaches the whole group of processes; it is the caller who ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    job: Job = pickle.load(sys.stdin.buffer)
    for line in sys.stdin.buffer:
        start, stop = map(int, line.split())
        sys.stdout.write(json.dumps(draw_places(job, start, stop)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
