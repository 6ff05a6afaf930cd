"""`geobind export`: a space, or a part of it, for another library."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geobind_core.cli.common import AsJson, Disabled, load_plugins, print_json, say

if TYPE_CHECKING:
    from geobind_core.export.write import Exported


def export(
    space: Annotated[Path, typer.Argument(metavar="SPACE", help="A space, a run folder, or an earlier export.")],
    to: Annotated[
        str,
        typer.Option(
            metavar="FORMAT", help="hub, onnx, or what a modality's plugin has: open_clip, transformers, clap, ...."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="The folder to write.")],
    modality: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="What to export; may be given several times. Default: what has the format."),
    ] = None,
    license_name: Annotated[
        str | None, typer.Option("--license", metavar="NAME", help="Licence of the weights, for the model card.")
    ] = None,
    disable_plugin: Disabled = None,
    as_json: AsJson = False,
) -> None:
    """Write a space for another library. The folder is loaded there and compared before it takes its place."""
    from geobind_core.export.write import export_space
    from geobind_core.space.space import Space

    loaded = Space.load(space, plugins=load_plugins(disable_plugin))
    written = export_space(loaded, to, out, modalities=modality or (), license_name=license_name)
    if as_json:
        print_json(_as_json(written))
        return
    size = sum(written.files.values())
    say(f"{written.folder}: {written.to}, {len(written.files)} files, {size / 1e6:.1f} MB")
    for name, content_hash in written.hashes.items():
        measured = written.measured.get(name)
        found = (
            f"largest difference {measured.largest_difference:.1e} over {measured.examples} examples"
            if measured
            else "weights read back, the same"
        )
        say(f"  {name}: {found}; content hash {content_hash[:12]}")
    for note in written.notes:
        say(f"  {note}")
    say(f"load it: {written.load}")


def _as_json(written: Exported) -> dict[str, Any]:
    return {
        "folder": str(written.folder),
        "format": written.to,
        "files": written.files,
        "modalities": {
            name: {
                "content_hash": content_hash,
                **(written.measured[name].model_dump() if name in written.measured else {}),
            }
            for name, content_hash in written.hashes.items()
        },
        "notes": list(written.notes),
        "load": written.load,
    }
