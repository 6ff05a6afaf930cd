"""Headers of tar files: as Python's own reader has them, and whatever state the file is in."""

import io
import os
import random
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from geobind_core.data.tar_headers import DamagedTarError, Member, members

NAMES = (
    "plain.txt",
    "folder/plain.txt",
    "p" * 60 + "/" + "q" * 60 + "/in-two-parts.txt",
    "long/" + "x" * 300 + ".jpg",
    "ünïcode/日本.txt",
    "empty.bin",
)


def written(path: Path, names: tuple[str, ...] = NAMES, **settings: Any) -> Path:
    with tarfile.open(path, "w", **settings) as tar:
        for i, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size = 0 if name.startswith("empty") else 700 * i + 1
            member.mtime = 1.5 if settings.get("format") == tarfile.PAX_FORMAT else 1
            tar.addfile(member, io.BytesIO(bytes([65 + i]) * member.size))
    return path


def listed(path: Path) -> list[Member]:
    handle = os.open(path, os.O_RDONLY)
    try:
        return list(members(handle, path.stat().st_size))
    finally:
        os.close(handle)


def up_to_the_damage(path: Path) -> tuple[list[Member], str]:
    handle, found = os.open(path, os.O_RDONLY), []
    try:
        for member in members(handle, path.stat().st_size):
            found.append(member)
    except DamagedTarError as error:
        return found, str(error)
    finally:
        os.close(handle)
    return found, ""


def by_tarfile(path: Path) -> list[tuple[str, int, int]]:
    with tarfile.open(path) as tar:
        return [(m.name, m.offset_data, m.size) for m in tar]


@pytest.mark.parametrize("layout", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_as_tarfile_has_them(tmp_path: Path, layout: int) -> None:
    path = written(tmp_path / "a.tar", format=layout)
    assert [(m.name.decode(), m.offset, m.size) for m in listed(path)] == by_tarfile(path)


def test_ustar(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tar", NAMES[:3], format=tarfile.USTAR_FORMAT)
    assert [(m.name.decode(), m.offset, m.size) for m in listed(path)] == by_tarfile(path)


@pytest.mark.skipif(shutil.which("tar") is None, reason="there is no tar")
@pytest.mark.parametrize("layout", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_as_the_program_tar_writes_them(tmp_path: Path, layout: str) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for i in range(5):
        (folder / f"{'n' * 20 * i}{i}.txt").write_bytes(bytes([i]) * 1000 * i)
    path = tmp_path / "a.tar"
    subprocess.run(["tar", f"--format={layout}", "-cf", path, "-C", folder, "--sort=name", "."], check=True)
    found = [(m.name.decode(), m.offset, m.size) for m in listed(path) if m.kind == "file"]
    with tarfile.open(path) as tar:
        assert found == [(m.name, m.offset_data, m.size) for m in tar if m.isfile()]
    assert len(found) == 5


@pytest.mark.skipif(shutil.which("tar") is None, reason="there is no tar")
@pytest.mark.parametrize("layout", ["gnu", "posix"])
def test_kinds(tmp_path: Path, layout: str) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    (folder / "b.txt").symlink_to("/etc/passwd")
    os.link(folder / "a.txt", folder / "c.txt")
    os.mkfifo(folder / "d.txt")
    with (folder / "e.txt").open("wb") as sparse:
        for megabyte in range(0, 60, 2):  # holes, more than fit into one header of the old format
            sparse.seek(megabyte * 2**20)
            sparse.write(b"z" * 4096)
    (folder / "f.txt").write_text("f")
    path = tmp_path / "a.tar"
    subprocess.run(["tar", f"--format={layout}", "-S", "-cf", path, "-C", folder, "--sort=name", "."], check=True)
    found = listed(path)
    assert [m.kind for m in found] == ["folder", "file", "link", "link", "device", "sparse", "file"]
    assert path.read_bytes()[found[-1].offset : found[-1].offset + found[-1].size] == b"f"


def test_sizes_that_need_more_than_octal_digits(tmp_path: Path) -> None:
    member = tarfile.TarInfo("big.bin")
    member.size = 9 * 2**30
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        file.write(member.tobuf(tarfile.GNU_FORMAT))
        file.truncate(512 + member.size + 1024)  # a hole; takes no room
    assert [(m.name, m.size) for m in listed(path)] == [(b"big.bin", 9 * 2**30)]


def test_cut_off_in_a_member(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tar")
    whole = listed(path)
    os.truncate(path, whole[3].offset + 10)
    found, damage = up_to_the_damage(path)
    assert found == whole[:3]
    assert "cut off" in damage
    assert "long/xxx" in damage


def test_cut_off_between_members(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tar", ("a.txt", "b.txt"), format=tarfile.GNU_FORMAT)
    whole = listed(path)
    os.truncate(path, whole[1].offset - 512)
    assert up_to_the_damage(path) == (whole[:1], f"it has no end mark; it may have been cut off at byte {512 + 512}")


def test_a_damaged_header(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tar", ("a.txt", "b.txt", "c.txt"), format=tarfile.GNU_FORMAT)
    whole = listed(path)
    content = bytearray(path.read_bytes())
    content[whole[1].offset - 512] ^= 4
    path.write_bytes(content)
    found, damage = up_to_the_damage(path)
    assert found == whole[:1]
    assert damage == f"there is no header of a member at byte {whole[1].offset - 512}"
    assert [name for name, *_ in by_tarfile(path)] == ["a.txt"]  # and says nothing


def test_archives_one_behind_the_other(tmp_path: Path) -> None:
    first, second = written(tmp_path / "a.tar", ("a.txt",)), written(tmp_path / "b.tar", ("b.txt",))
    both = tmp_path / "c.tar"
    both.write_bytes(first.read_bytes() + second.read_bytes())
    found, damage = up_to_the_damage(both)
    assert [m.name for m in found] == [b"a.txt"]
    assert f"what follows from byte {first.stat().st_size} on is not read" in damage


@pytest.mark.parametrize("content", [b"", b"x", b"<html>" * 500, os.urandom(4096)])
def test_no_tar(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    found, damage = up_to_the_damage(path)
    assert found == []
    assert damage


def test_a_header_that_claims_too_much_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    long_name = tarfile.TarInfo("././@LongLink")
    long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, 2**40
    path.write_bytes(long_name.tobuf(tarfile.GNU_FORMAT) + bytes(10_240))
    assert up_to_the_damage(path) == ([], f"the header at byte 0 claims {2**40} bytes")


@pytest.mark.parametrize("layout", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_hundred_broken_ones(tmp_path: Path, layout: int) -> None:
    """Bits turned, ends cut off, pieces moved: what is found lies in the file, and comes to an end."""
    rng, path = random.Random(3), written(tmp_path / "a.tar", format=layout)
    whole, damages = path.read_bytes(), 0
    for _ in range(100):
        content = bytearray(whole)
        for _ in range(rng.randrange(1, 12)):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        if rng.random() < 0.3:
            content = content[: rng.randrange(len(content))]
        if rng.random() < 0.3:
            start = rng.randrange(len(content) or 1)
            content = content[start:] + content[:start]
        path.write_bytes(content)
        found, damage = up_to_the_damage(path)
        damages += bool(damage)
        assert all(0 <= m.offset <= m.offset + m.size <= len(content) for m in found)
    assert damages > 50
