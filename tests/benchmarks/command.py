"""The command: which benchmarks to run, and where the figures go."""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from geobind_core.errors import EXIT_INTERRUPTED

from . import (
    anchor_cache,
    audio,
    floor,
    images,
    large_table,
    location,
    overhead,
    peer,
    ranks,
    search,
    shards,
    tiled_infonce,
    two_pass,
    zero_shot_map,
)
from .measure import Settings
from .results import Row, machine, table_of

BENCHMARKS: dict[str, Callable[[Settings], list[Row]]] = {
    overhead.NAME: overhead.run,
    two_pass.NAME: two_pass.run,
    tiled_infonce.NAME: tiled_infonce.run,
    anchor_cache.NAME: anchor_cache.run,
    peer.NAME: peer.run,
    audio.NAME: audio.run,
    images.NAME: images.run,
    floor.FIRST: floor.run_first,
    floor.SECOND: floor.run_second,
    large_table.NAME: large_table.run,
    shards.NAME: shards.run,
    location.NAME: location.run,
    ranks.NAME: ranks.run,
    search.NAME: search.run,
    zero_shot_map.NAME: zero_shot_map.run,
}


def run(arguments: Sequence[str], folder: str) -> int:
    """Runs what is asked for; returns the exit code: 1 if one broke, 130 if interrupted, 0 whatever the figures are."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=BENCHMARKS, default=list(BENCHMARKS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures and timings to this file")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one repeat: shows that it runs, no more")
    parser.add_argument("--repeats", type=int, metavar="N", help="runs of each side (3)")
    options = parser.parse_args(arguments)
    repeats = options.repeats or (1 if options.quick else 3)

    report: dict[str, Any] = {
        "format": 1,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": options.quick,
        "repeats": repeats,
        "machine": machine(),
        "seconds": {},
        "broken": {},
        "rows": [],
    }
    progress = Console(stderr=True, highlight=False)
    rows: list[Row] = []
    interrupted = False
    for name in options.only:
        progress.print(f"{name} …")
        own = Path(folder) / name
        own.mkdir()
        started = time.monotonic()
        try:
            rows += BENCHMARKS[name](Settings(options.quick, repeats, own))
        except KeyboardInterrupt:
            interrupted = True
            break
        except Exception as error:  # the others are worth having all the same
            progress.print(traceback.format_exc(), markup=False)
            report["broken"][name] = f"{type(error).__name__}: {error}"
            rows.append(Row(name, "broken", "", note=report["broken"][name]))
        report["seconds"][name] = round(time.monotonic() - started, 1)
        report["rows"] = [row.as_json() for row in rows]
        if options.json:  # after each, for it may be interrupted
            options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        gc.collect()
    # A table that is piped into a file is not cut to the width of a terminal that is not there.
    output = Console(width=None if sys.stdout.isatty() else 200, highlight=False, markup=False, emoji=False)
    output.print(table_of(rows))
    where = ", ".join(f"{key} {value}" for key, value in report["machine"].items())
    output.print(f"{where}; {repeats} repeats, {sum(report['seconds'].values()):.0f} s")
    if options.quick:
        output.print("--quick: these sizes say nothing about speed")
    if interrupted:
        output.print("interrupted: not all of it was measured")
        return EXIT_INTERRUPTED
    return 1 if report["broken"] else 0
