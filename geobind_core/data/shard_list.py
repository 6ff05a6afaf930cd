"""Which shards a pattern stands for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from glob import glob, has_magic
from itertools import islice
from pathlib import Path

from braceexpand import braceexpand

from geobind_core.data.remote import is_url, listed, plain, shown
from geobind_core.data.shard_file import ShardFile, find_shard
from geobind_core.errors import DataError

_MOST = 1_000_000
_NAMED = 5
_THREADS = 16  # that wait for a server at a time


def find_shards(patterns: str | Sequence[str], resolve: Callable[[str], Path]) -> tuple[ShardFile, ...]:
    """Returns the shards in the order in which they are written; what a `*` stands for is sorted.

    Args:
        patterns: Paths and addresses, with braces as in a shell and with `*`.
        resolve: Makes a relative path absolute.

    Raises:
        DataError: One of them is missing, or nothing fits a pattern.
    """
    written = [patterns] if isinstance(patterns, str) else patterns
    locations = list(dict.fromkeys(place for pattern in written for place in _expanded(pattern, resolve)))
    if not locations:
        raise DataError("no shards are named.", place="shards")
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(find_shard, locations))
    missing = [place for place, file in zip(locations, found, strict=True) if file is None]
    if missing:
        names = ", ".join(map(shown, missing[:_NAMED]))
        raise DataError(
            f"{len(missing)} of {len(locations)} shards are missing: {names}{', …' if missing[_NAMED:] else ''}.",
            place="shards",
            hint="Relative paths start at the chain file's folder. A pattern with * takes what is there.",
        )
    files = tuple(file for file in found if file is not None)
    [((folder, name), count)] = Counter((file.folder, file.name) for file in files).most_common(1)
    if count > 1:
        raise DataError(
            f"{count} shards are called '{name}'; expected a name of its own for each in a folder.", place=shown(folder)
        )
    return files


def _expanded(pattern: str, resolve: Callable[[str], Path]) -> Iterator[str]:
    if pattern.startswith("pipe:"):
        raise DataError(
            "found a command; commands are not run.",
            place=f"shards '{pattern}'",
            hint="Write the address itself: s3://, gs://, https://, ….",
        )
    try:
        places = list(islice(braceexpand(pattern), _MOST + 1))
    except ValueError:
        raise DataError("a brace is not closed, or not opened.", place=f"shards '{pattern}'") from None
    if len(places) > _MOST:
        raise DataError(f"the braces stand for more than {_MOST:,} shards.", place=f"shards '{pattern}'")
    for place in places:
        remote = is_url(place)
        location = place if remote else str(resolve(plain(place)))
        if "*" not in location if remote else (not has_magic(location) or Path(location).exists()):
            yield location
            continue
        found = listed(location) if remote else sorted(glob(location, recursive=True))  # noqa: PTH207 - an absolute one
        if not found:
            raise DataError("no shard fits the pattern.", place=shown(location))
        yield from found
