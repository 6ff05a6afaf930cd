"""Seeds: one for each purpose."""

from __future__ import annotations

import hashlib


def derived_seed(seed: int, *names: str) -> int:
    """Returns a seed for one purpose, so that purposes do not share a stream."""
    digest = hashlib.blake2b(":".join([str(seed), *names]).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")
