"""Reading a period of time."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta

from geobind_core.errors import ConfigError
from geobind_core.index.search import Period


def parse_period(text: str) -> Period:
    """Reads `START/END` in ISO 8601; either may be missing, and a day as the end is meant to its last moment.

    Raises:
        ConfigError: It is no such thing.
    """

    def moment(part: str, *, end: bool) -> datetime | None:
        if part in ("", ".."):
            return None
        found = datetime.fromisoformat(part)
        if end and found.time() == time() and "T" not in part and " " not in part:
            found += timedelta(days=1) - timedelta(microseconds=1)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)

    try:
        start, slash, end = text.strip().partition("/")
        period = moment(start, end=False), moment(end if slash else start, end=True)
    except ValueError:
        raise ConfigError(
            "expected START/END, such as 2024-06-01/2024-08-31 or 2024-06-01T12:00/..", place=f"--time {text}"
        ) from None
    if period[0] is not None and period[1] is not None and period[0] > period[1]:
        raise ConfigError("the start is after the end.", place=f"--time {text}")
    return period
