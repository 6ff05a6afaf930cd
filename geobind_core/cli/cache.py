"""`geobind cache`: what is stored of frozen encoders."""

from __future__ import annotations

from typing import Annotated

import typer

from geobind_core.cli.common import AsJson, print_json, print_table, say

cache = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@cache.command("path")
def cache_path() -> None:
    """Print the cache's folder."""
    from geobind_core.data.cache_entries import cache_root

    say(str(cache_root()))


@cache.command("list")
def cache_list(as_json: AsJson = False) -> None:
    """List what is stored, the last used first."""
    from geobind_core.data.cache_entries import cache_root, list_entries
    from geobind_core.display import cache_rows, cache_table

    root = cache_root()
    rows = cache_rows(list_entries(root))
    print_json(rows) if as_json else print_table(cache_table(rows, root))


@cache.command("prune")
def cache_prune(
    older_than: Annotated[
        float | None, typer.Option(metavar="DAYS", help="Remove what was not used for so many days.")
    ] = None,
    max_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Remove the longest unused until the rest fits, as in 10GiB.")
    ] = None,
    modality: Annotated[str | None, typer.Option(metavar="NAME", help="Remove this modality's only.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Remove everything.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be removed; do nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove some of it or all. It is computed again when needed."""
    from geobind_core.data.cache_entries import cache_root
    from geobind_core.data.cache_prune import parse_size, prune
    from geobind_core.display import cache_rows, cache_table, entries_text

    root, size = cache_root(), None if max_size is None else parse_size(max_size)
    pruned = prune(
        root, older_than=older_than, max_size=size, modality=modality, everything=everything, dry_run=dry_run
    )
    rows = cache_rows(pruned.entries)
    if as_json:
        print_json({"removed": rows, "leftovers": pruned.leftovers, "dry_run": dry_run})
        return
    if rows:
        print_table(cache_table(rows, root))
    leftovers = f" and {pruned.leftovers} leftovers of killed processes" if pruned.leftovers else ""
    say(f"{'would remove' if dry_run else 'removed'} {entries_text(rows)}{leftovers}")
