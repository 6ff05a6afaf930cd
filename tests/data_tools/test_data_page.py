"""Every command that the page on preparing data shows, in the order of the page."""

import re
import shlex
from pathlib import Path
from typing import Any

import pyarrow.parquet
import yaml
from PIL import Image

PAGE = Path(__file__).parents[2] / "docs/pages/data.md"
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_commands_of_the_page(geobind: Any, tmp_path: Path) -> None:
    ran = []
    for language, rest, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if language == "yaml":
            (tmp_path / re.search(r'title="([^"]*)"', rest)[1]).write_text(text)  # type: ignore[index]
            continue
        assert language == "bash", f"a block of {language}"
        for line in text.replace("\\\n", " ").splitlines():
            program, *arguments = shlex.split(line)
            assert program == "geobind"
            done = geobind(*arguments)
            assert done.returncode == 0, f"{line}\n{done.stderr}"
            ran.append((arguments, done))
    verbs = [arguments[1] for arguments, _ in ran if arguments[0] == "data"]
    assert {"inspect", "pack", "split", "synth"} <= set(verbs)
    assert pyarrow.parquet.read_table(tmp_path / "survey/table.parquet").num_rows == 60
    assert "test" in pyarrow.parquet.read_table(tmp_path / "survey/divided.parquet")["part"].to_pylist()
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (958, 1772)  # of 8 rows and 3 modalities
    inspected = [done.stdout.splitlines()[0] for arguments, done in ran if arguments[:2] == ["data", "inspect"]]
    assert inspected[0] == "survey (table): 60 rows (train 48, test 12)"
    assert inspected[-1] == "survey (webdataset): 60 rows (train 48, test 12)"
    # What is printed for a chain is what the page has, but for the name.
    (packed,) = [done.stdout for arguments, done in ran if arguments[:2] == ["data", "pack"]]
    settings = yaml.safe_load(packed.partition("\n\n")[2])["data"]["shards"]
    shown = yaml.safe_load((tmp_path / "packed.yaml").read_text())["data"]["survey"]
    assert {name: settings[name] for name in shown} == shown
