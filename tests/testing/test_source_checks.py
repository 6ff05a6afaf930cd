"""The kit for sources finds what is planted, by the check that is meant for it."""

import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ConfigDict

from geobind_core import DataError, Observations, Progress, Reference, Source, SourceConfig
from geobind_core.testing import source_checks


class NotesConfig(SourceConfig):
    source: str = "notes"
    root: str = "notes"


class Notes(Source[NotesConfig]):
    """A file for each note. Nothing is wrong with it; those below differ in one thing each."""

    name = "notes"
    Config = NotesConfig
    default_fields = ("text",)

    def files(self) -> list[Path]:
        root = self.resolve(self.config.root)
        if not root.is_dir():
            raise DataError("no such folder.", place=str(root))
        return sorted(root.glob("*.txt"))

    def fingerprint(self) -> str:
        return ",".join(path.name for path in self.files())

    def rows(self) -> list[dict[str, Any]]:
        return [{"key": path.stem, "file": path.name, "text": path.stem * 2} for path in self.files()]

    def observations(self) -> Observations:
        fields = {"text": "text", "note": "file"}
        return Observations(pa.Table.from_pylist(self.rows()), self.resolve(self.config.root), fields)


class WithGaps(Notes):
    """Nothing is wrong with it: what is unknown is NaN."""

    def rows(self) -> list[dict[str, Any]]:
        return [{**row, "depth": float("nan"), "pair": [1.0, float("nan")]} for row in super().rows()]


class SameKeys(Notes):
    def rows(self) -> list[dict[str, Any]]:
        return [{**row, "key": "same"} for row in super().rows()]


class NoColumn(Notes):
    def rows(self) -> list[dict[str, Any]]:
        return [{"key": row["key"], "file": row["file"]} for row in super().rows()]


class PromisesMore(Notes):
    default_fields = ("text", "audio")


class AnyOrder(Notes):
    calls = 0

    def rows(self) -> list[dict[str, Any]]:
        AnyOrder.calls += 1
        return super().rows()[:: -1 if AnyOrder.calls % 2 else 1]


class GrowsWhenPrepared(Notes):
    def prepare(self, progress: Progress) -> None:
        root = self.resolve(self.config.root)
        (root / f"new-{len(self.files())}.txt").write_text("new")


class Clock(Notes):
    def fingerprint(self) -> str:
        return str(time.perf_counter())


class HashesItsFields(Notes):
    def fingerprint(self) -> str:
        return super().fingerprint() + str(self.config.fields)


class ReadsEverything(Notes):
    def fingerprint(self) -> str:
        return "".join(path.read_text() for path in self.files())


class OtherError(Notes):
    def files(self) -> list[Path]:
        return sorted(self.resolve(self.config.root).iterdir())


class NowhereInParticular(Notes):
    def files(self) -> list[Path]:
        try:
            return super().files()
        except DataError as error:
            raise DataError("no data") from error


class EmptyIsFine(Notes):
    def files(self) -> list[Path]:
        return sorted(self.resolve(self.config.root).glob("*.txt"))


class Lenient(Notes):
    class Config(NotesConfig):
        model_config = ConfigDict(extra="ignore")


class NotesAreText(Notes):
    def notes(self) -> Any:
        return "two rows were left out"


class Elsewhere(Reference):
    def __init__(self, value: str) -> None:
        self.value = value

    def identity(self) -> bytes:
        return self.value.encode()

    def read(self, *, is_file: bool) -> Any:
        return self.value.encode()


class WithReferences(Notes):
    """Its files lie elsewhere; nothing is wrong with it."""

    def make(self) -> Any:
        return Elsewhere

    def observations(self) -> Observations:
        return Observations(**{**vars(super().observations()), "references": {"file": self.make()}})


class ReferencesByLambda(WithReferences):
    def make(self) -> Any:
        return lambda value: Elsewhere(value)


class WithoutIdentity(Elsewhere):
    def identity(self) -> bytes:
        return str(time.perf_counter()).encode()


class ReferencesWithoutIdentity(WithReferences):
    def make(self) -> Any:
        return WithoutIdentity


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "notes").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "notes" / f"{name}.txt").write_text(name)
    return tmp_path


def results(source: Source[Any], **options: Any) -> dict[str, Any]:
    return {str(check): check.result() for check in source_checks(source, **options)}


def failures(source: Source[Any], **options: Any) -> dict[str, str]:
    found = results(source, **options)
    return {name: result.message for name, result in found.items() if result.status == "failed"}


@pytest.mark.parametrize("source", [Notes, WithReferences, WithGaps])
def test_good_sources_pass_every_check(source: type[Notes], base: Path) -> None:
    found = results(source(source.Config(), base))
    assert {result.status for result in found.values()} <= {"ok", "skipped"}
    assert found["missing_data"].status == "ok"
    assert found["references"].status == ("ok" if source is WithReferences else "skipped")


@pytest.mark.parametrize(
    ("faulty", "checks", "message"),
    [
        (SameKeys, {"observations"}, "same"),
        (NoColumn, {"observations"}, "text"),
        (PromisesMore, {"observations"}, "`default_fields` names audio"),
        (AnyOrder, {"observations_again", "prepare_again"}, "other rows"),
        (GrowsWhenPrepared, {"prepare_again", "observations_again", "fingerprint"}, "there are other rows"),
        (Clock, {"fingerprint"}, "another fingerprint"),
        (HashesItsFields, {"fingerprint"}, "the engine watches them itself"),
        (ReadsEverything, {"fingerprint_is_cheap"}, "a.txt"),
        (OtherError, {"missing_data"}, "FileNotFoundError"),
        (NowhereInParticular, {"missing_data"}, "does not say where"),
        (Lenient, {"config_unknown_key"}, "without a word"),
        (NotesAreText, {"notes"}, "expected a list"),
        (ReferencesByLambda, {"references"}, "pickle"),
        (ReferencesWithoutIdentity, {"references"}, "identity() differs"),
    ],
)
def test_finds_what_is_planted(faulty: type[Notes], checks: set[str], message: str, base: Path) -> None:
    found = failures(faulty(faulty.Config(), base))
    assert found
    assert set(found) <= checks
    assert any(message in text for text in found.values())


def test_an_instance_without_data_may_be_given(base: Path) -> None:
    elsewhere = str(base / "notes")
    source = EmptyIsFine(NotesConfig(root=elsewhere), base)
    assert results(source)["missing_data"].status == "skipped"
    (base / "nothing").mkdir()
    found = failures(source, missing=EmptyIsFine(NotesConfig(root="nothing"), base))
    assert found == {"missing_data": "data that is missing is returned all the same"}
