"""What a source plugin is: a class that yields a table of paired observations."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import Field, model_validator

from geobind_core.config.models import StrictModel
from geobind_core.errors import PluginError

if TYPE_CHECKING:
    import pyarrow as pa

ConfigT = TypeVar("ConfigT", bound="SourceConfig")

Progress = Callable[[int, int, str], None]
"""Called as `progress(done, total, text)` while something long is under way."""


_FOR_PEOPLE = ("license", "citation", "homepage")


class SplitConfig(StrictModel):
    """How rows are divided into train, validation and test.

    `by: column` reads a column that holds these words; `by: hash` decides by a hash of the key, so
    that a row keeps its split whatever else the table holds; `by: blocks` decides by a hash of the
    part of the Earth that a row lies in, so that neighbours stay together; `by: none` puts every row
    into train.
    """

    by: Literal["column", "hash", "blocks", "none"] = Field("hash", description="What decides the split of a row.")
    column: str | None = Field(None, description="by: column: the column that names the split.")
    validation: float = Field(
        0.0, ge=0, lt=1, description="by: hash, blocks: share of rows, or of blocks, for validation."
    )
    test: float = Field(
        0.1, ge=0, lt=1, description="by: hash, blocks: share of rows, or of blocks, held out for evaluation."
    )
    seed: int = Field(0, description="by: hash, blocks: another seed makes another division.")
    block_km: float = Field(
        100.0, gt=0, description="by: blocks: side of a block in kilometres; all have the same area."
    )
    buffer_km: float = Field(
        0.0,
        ge=0,
        description="by: blocks: rows closer than this to a place that is held out are in no split.",
    )

    @model_validator(mode="after")
    def _complete(self) -> SplitConfig:
        if self.by == "column" and self.column is None:
            raise ValueError("by: column needs `column`, the name of the column that holds the split")
        if self.validation + self.test >= 1:
            raise ValueError("validation + test leave nothing to train on; expected a sum below 1")
        return self


class SourceConfig(StrictModel):
    """The settings of a data set in `stages.yaml`; subclass it to add your own."""

    source: str = Field(description="Registered name of the source.")
    fields: dict[str, str | list[str]] | None = Field(
        None,
        description="Modality -> the column (or columns) that hold it, beside those that the source knows itself.",
    )
    labels: dict[str, str] | None = Field(
        None,
        description="Modality -> a column of labels: rows with equal labels are equally right answers.",
    )
    split: SplitConfig | None = Field(None, description="How rows are divided into train, validation, test.")
    license: str | None = Field(None, description="Licence of the data, for the model card: an SPDX name or words.")
    citation: str | None = Field(None, description="How the data asks to be cited, for the model card.")
    homepage: str | None = Field(None, description="Where the data is described, for the model card.")


class Reference(ABC):
    """A cell whose content lies elsewhere, such as in the middle of a tar file."""

    @abstractmethod
    def identity(self) -> bytes:
        """Returns what tells it from all others, and from itself with another content, without reading it."""

    @abstractmethod
    def read(self, *, is_file: bool) -> Any:
        """Returns the content.

        Args:
            is_file: Whether the modality reads files, and takes their bytes.

        Raises:
            DataError: It cannot be read.
        """

    def size(self) -> int | None:
        """Returns how many bytes it has, if that is known and it can be read without fetching more than that."""
        return None


@dataclass(frozen=True)
class Observations:
    """A table of paired observations: a row is a place, a column an observation of it.

    Attributes:
        table: The rows.
        root: Relative paths in cells start at this folder, or at this address of one.
        fields: Modality -> its column, or a tuple of columns read together.
        key: The column that names a row; keys are unique.
        labels: Modality -> a column of labels; rows with equal labels are equally right answers.
        split: The column that holds `train`, `validation` or `test`, if there is one.
        longitude: The column of longitudes, degrees, WGS 84, if there is one.
        latitude: The column of latitudes, degrees, WGS 84, if there is one.
        references: Column -> what makes a `Reference` of a value, for columns whose content lies elsewhere.
        blocks: A column of numbers, if rows with the same number should be read at about the same time,
            since they come from one large file that has to be fetched first.
        blocks_at_once: Rows of so many blocks are mixed with each other.
        blocks_ahead: So many blocks there is room for beside those in use; they may be fetched before they are needed.
        fetch_block: Fetches what a block's rows are in. It is called with numbers of `blocks`, by several threads at a
            time, and may be called of what is there already; what it raises is left to those who read the rows.
    """

    table: pa.Table
    root: Path | str
    fields: Mapping[str, str | tuple[str, ...]]
    key: str = "key"
    labels: Mapping[str, str] = field(default_factory=dict)
    split: str | None = None
    longitude: str | None = None
    latitude: str | None = None
    references: Mapping[str, Callable[[Any], Reference]] = field(default_factory=dict)
    blocks: str | None = None
    blocks_at_once: int = 16
    blocks_ahead: int = 0
    fetch_block: Callable[[int], None] | None = None


class Source(Generic[ConfigT]):
    """A kind of data set: where rows come from.

    Args:
        config: The validated settings.
        base: The folder of the chain file; relative paths in the settings start there.
    """

    name: ClassVar[str]
    Config: ClassVar[type[SourceConfig]] = SourceConfig
    default_fields: ClassVar[tuple[str, ...]] = ()
    """Modalities that `observations()` maps to columns by itself, when that is known beforehand."""

    expected_failures: ClassVar[Mapping[str, str]] = {}
    """Checks of `geobind_core.testing` that are known to fail, each with the reason."""

    config: ConfigT

    def __init__(self, config: ConfigT, base: Path) -> None:
        self.config = config
        self.base = base

    def resolve(self, path: str | Path) -> Path:
        """Returns a path of the settings as an absolute one."""
        expanded = Path(path).expanduser()
        return expanded if expanded.is_absolute() else (self.base / expanded).absolute()

    def fingerprint(self) -> str:
        """Identifies the content, cheaply: nothing is generated and no image is opened.

        The default is a hash of the source's own settings; a source over files adds the content of
        its table. `fields`, `labels` and `split` do not count: the engine watches them itself. Nor does what is
        said for the model card only.
        """
        own = self.config.model_dump(mode="json", exclude={"fields", "labels", "split", *_FOR_PEOPLE})
        return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()

    def prepare(self, progress: Progress) -> None:
        """Makes what `observations` reads exist. Must be idempotent; most sources need nothing."""

    def notes(self) -> list[str]:
        """Returns what a person should know of the data, a line each: what was left out, and why.

        Asked after `prepare`.
        """
        return []

    def observations(self) -> Observations:
        """Returns the rows.

        Raises:
            DataError: The data is missing or cannot be read.
        """
        raise TypeError(f"{type(self).__name__} does not define observations()")


def observations_of(source: Source[Any]) -> Observations:
    """Returns the rows of a source.

    Raises:
        DataError: The data is missing or cannot be read.
        PluginError: The source returns something else.
    """
    import pyarrow as pa

    found: Observations = source.observations()
    wrong = "" if isinstance(found, Observations) else f"{type(found).__name__}; expected Observations"
    for name, kind in {"table": pa.Table, "fields": Mapping}.items() if not wrong else ():
        if not isinstance(value := getattr(found, name), kind):
            wrong = f"Observations with the `{name}` {value!r:.100}; expected a {kind.__name__}"
    if wrong:
        raise PluginError(
            f"observations() of the source '{source.name}' returned {wrong}.",
            hint=f"Mend the plugin; `geobind plugins check {source.name}` tries it.",
        )
    return found
