"""The kit for sources."""

from __future__ import annotations

import pickle
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest import SkipTest

import pyarrow as pa

from geobind_core.data.paired import PairedData
from geobind_core.errors import DataError
from geobind_core.plugins.source import Observations, Reference, Source, SourceConfig
from geobind_core.testing.check import Check, CheckError, Definition, checks_of, require
from geobind_core.testing.packaging import PACKAGING_CHECKS, PluginSubject
from geobind_core.testing.values import same

_LOOKED_AT = 20
_opened: list[list[str]] = []


class SourceSubject(PluginSubject):
    """A source, and how more of the same are made."""

    def __init__(self, source: Source[Any], missing: Source[Any] | None) -> None:
        super().__init__("source", type(source), source.config)
        self.config: SourceConfig
        self.source = source
        self.missing = missing
        self._prepared = False

    def again(self) -> Source[Any]:
        """Returns another instance with the same settings."""
        made: Source[Any] = self.owner(self.source.config, self.source.base)
        return made

    def observations(self) -> Observations:
        """Returns the rows, after `prepare`."""
        if not self._prepared:
            self.source.prepare(_silent)
            self._prepared = True
        return self.source.observations()

    def rows_of(self, found: Observations) -> PairedData:
        """Returns the rows as a stage has them.

        Raises:
            DataError: A column is missing, or keys are not unique.
        """
        return PairedData(self.owner.name, found, self.config)

    def needed(self) -> Observations:
        """Returns the rows, for checks that are not about whether there are any."""
        try:
            found = self.observations()
            self.rows_of(found)
            return found
        except Exception as error:  # the check `observations` says what
            raise SkipTest("see the check observations") from error


def _silent(done: int, total: int, text: str) -> None:
    """Takes progress, and shows nothing."""


def _same(first: pa.Table, second: pa.Table) -> bool:
    """Whether two tables are equal, NaN with NaN."""
    if first.schema != second.schema:
        return False
    columns = zip(first.columns, second.columns, strict=True)
    return all(a.equals(b) or same(a.to_pylist(), b.to_pylist()) is True for a, b in columns)


def _observations(subject: SourceSubject) -> None:
    found = subject.observations()
    require(isinstance(found, Observations), f"observations() returns {type(found).__name__}; expected Observations")
    data = subject.rows_of(found)
    missing = [name for name in subject.owner.default_fields if name not in data.fields]
    require(not missing, f"`default_fields` names {', '.join(missing)}, which observations() maps to no column")


def _again(subject: SourceSubject) -> None:
    first, second = subject.needed(), subject.again().observations()
    require(_same(first.table, second.table), "a second instance returns other rows")
    require(dict(first.fields) == dict(second.fields), "a second instance maps other fields")


def _prepare(subject: SourceSubject) -> None:
    before = subject.needed()
    subject.source.prepare(_silent)
    subject.again().prepare(_silent)
    require(_same(before.table, subject.again().observations().table), "after another prepare() there are other rows")


def _fingerprint(subject: SourceSubject) -> None:
    subject.needed()
    first = subject.source.fingerprint()
    require(isinstance(first, str) and first, f"fingerprint() returns {first!r}; expected a text")
    require(first == subject.source.fingerprint(), "a second call returns another fingerprint")
    require(first == subject.again().fingerprint(), "another instance with the same settings has another fingerprint")
    engine = {"fields": {"no_such_modality": "no_such_column"}, "split": {"by": "none"}}
    config = subject.source.config.model_copy(
        update={
            name: getattr(type(subject.source.config).model_validate({**subject.settings(), name: value}), name)
            for name, value in engine.items()
        }
    )
    other = subject.owner(config, subject.source.base).fingerprint()
    require(first == other, "`fields` and `split` change the fingerprint; the engine watches them itself")


def _fingerprint_is_cheap(subject: SourceSubject) -> None:
    found = subject.needed()
    if isinstance(found.root, str):
        raise SkipTest("the files lie at an address")
    columns = {c for named in found.fields.values() for c in ((named,) if isinstance(named, str) else named)}
    cells = {
        str((found.root / value).absolute())
        for column in columns - set(found.references)
        for value in found.table[column].slice(0, 1000).to_pylist()
        if isinstance(value, str) and len(value) < 1000
    }
    with _files_opened() as opened:
        subject.again().fingerprint()
    touched = sorted(cells & {str(Path(path).absolute()) for path in opened})
    require(not touched, f"fingerprint() opens files of rows: {', '.join(touched[:3])}")


@contextmanager
def _files_opened() -> Iterator[list[str]]:
    """Notes which files are opened meanwhile. An audit hook stays for good; it listens only here."""
    _listen_from_now_on()
    opened: list[str] = []
    _opened.append(opened)
    try:
        yield opened
    finally:
        _opened.remove(opened)


@cache
def _listen_from_now_on() -> None:
    sys.addaudithook(_note)


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened and event == "open" and isinstance(arguments[0], str):
        for listener in _opened:
            listener.append(arguments[0])


def _missing_data(subject: SourceSubject) -> None:
    if subject.missing is not None:
        _must_refuse(subject.missing, lambda source: source.prepare(_silent))
        return
    with tempfile.TemporaryDirectory() as empty:
        moved = subject.owner(subject.source.config, Path(empty))
        if not _must_refuse(moved):
            raise SkipTest("moved to an empty folder it still finds its data; give missing= to source_checks()")


def _must_refuse(source: Source[Any], prepare: Callable[[Source[Any]], None] | None = None) -> bool:
    """Returns False if the data was found without `prepare`."""
    try:
        if prepare:
            prepare(source)
        source.observations()
    except DataError as error:
        require(error.place, f"the error does not say where: {error}")
        return True
    except Exception as error:
        raise CheckError(f"missing data raises {type(error).__name__}: {error}; expected DataError") from error
    require(prepare is None, "data that is missing is returned all the same")
    return False


def _references(subject: SourceSubject) -> None:
    found = subject.needed()
    if not found.references:
        raise SkipTest("no column has its content elsewhere")
    for column, make in found.references.items():
        make = pickle.loads(pickle.dumps(make))
        for value in found.table[column].slice(0, _LOOKED_AT).to_pylist():
            if value is None:
                continue
            first, second = make(value), pickle.loads(pickle.dumps(make(value)))
            require(
                isinstance(first, Reference), f"references['{column}'] makes {type(first).__name__}; expected Reference"
            )
            require(first.identity() == second.identity(), f"column '{column}': identity() differs from time to time")
            require(first.read(is_file=True) == second.read(is_file=True), f"column '{column}': read() differs")


def _notes(subject: SourceSubject) -> None:
    subject.needed()
    notes = subject.source.notes()
    lines = isinstance(notes, list) and all(isinstance(note, str) for note in notes)
    require(lines, f"notes() returns {notes!r}; expected a list of texts")


SOURCE_CHECKS: tuple[Definition[Any], ...] = (
    *PACKAGING_CHECKS,
    Definition(
        "observations",
        "Every row has a name of its own, and the columns that are spoken of exist.",
        "Compare `fields`, `labels`, `split`, `key`, `longitude` and `latitude` with the columns of the table.",
        _observations,
    ),
    Definition(
        "observations_again",
        "A run that goes on, and other processes, see the same rows in the same order.",
        "Sort what a folder lists; draw nothing without a seed of its own.",
        _again,
    ),
    Definition(
        "prepare_again",
        "`prepare` may be called any number of times, by several processes, and makes the same data.",
        "Return at once where the data is there; write into a temporary folder and rename it.",
        _prepare,
    ),
    Definition(
        "fingerprint",
        "A stage that is done is not run again, unless its data has changed.",
        "Hash the settings that decide the content, and the content of the table; leave out times, the base folder, "
        "`fields`, `labels` and `split`.",
        _fingerprint,
    ),
    Definition(
        "fingerprint_is_cheap",
        "`geobind run --dry-run` answers at once: planning opens no file of a row.",
        "Hash the table, not the files that its cells name.",
        _fingerprint_is_cheap,
    ),
    Definition(
        "missing_data",
        "Where data is missing, the user is told what and where.",
        'Raise DataError("cannot be read", place=str(path), hint="…").',
        _missing_data,
    ),
    Definition(
        "references",
        "What lies elsewhere is read in loader workers, and told apart without reading it.",
        "Make references of plain values; functions at the top of a module can be pickled, lambdas cannot.",
        _references,
    ),
    Definition(
        "notes",
        "What was left out of the data is shown.",
        "notes() returns a list of lines.",
        _notes,
    ),
)


def source_checks(
    source: Source[Any],
    *,
    missing: Source[Any] | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> list[Check]:
    """Returns the checks of a source.

    Args:
        source: An instance over data that is there, or that `prepare` makes. Choose a small one.
        missing: An instance whose data is not there. Without it, `source` is looked for in an empty folder.
        expected_failures: Check -> why it is known to fail, beside what the class itself declares.

    Raises:
        ValueError: An expected failure names no check, or has no reason.
    """
    return checks_of(SOURCE_CHECKS, SourceSubject(source, missing), type(source), expected_failures)
