"""What a modality plugin is: one class."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import ConfigDict, Field, model_validator

from geobind_core.config.models import StrictModel
from geobind_core.config.problems import suggest
from geobind_core.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from geobind_core.plugins.export import Exporter

ConfigT = TypeVar("ConfigT", bound="ModalityConfig")


class ModalityConfig(StrictModel):
    """The settings of a modality in `stages.yaml`; subclass it to add your own.

    Unknown keys are errors, so that a misspelled setting cannot be ignored silently.
    """

    model_config = ConfigDict(protected_namespaces=())

    plugin: str | None = Field(
        None, description="Registered name of the plugin's modality; defaults to the modality's own name."
    )
    init_from: str | None = Field(
        None, description="Start from the weights of this modality, which must have the same network."
    )
    pretrained: str | None = Field(
        None, description="Weights to start from: a name known to the library, or a local file or folder."
    )
    projection: Literal["auto", "none", "linear"] = Field(
        "auto",
        description="Linear head from the encoder's dimension to the space's: auto adds it where they differ.",
    )

    @model_validator(mode="after")
    def _one_start(self) -> ModalityConfig:
        if self.pretrained is not None and self.init_from is not None:
            raise ValueError("`pretrained` and `init_from` exclude each other; a network starts from one of them")
        return self


@dataclass(frozen=True)
class Augmentation:
    """One augmentation as written in a stage: `randaugment(3)` is `("randaugment", (3,))`."""

    name: str
    arguments: tuple[float, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Augmentation:
        """Reads `randaugment(3)`, `randaugment(3, 9)` or `flips`.

        Raises:
            ValueError: It is not a name with numbers in brackets.
        """
        match = re.fullmatch(r"\s*([A-Za-z_]\w*)\s*(?:\(([^()]*)\))?\s*", text)
        if match is None:
            raise ValueError(f"found '{text}'; expected a name and numbers, such as randaugment(3)")
        arguments = [part.strip() for part in (match[2] or "").split(",") if part.strip()]
        try:
            return cls(match[1], tuple(float(argument) for argument in arguments))
        except ValueError:
            raise ValueError(f"found '{text}'; the arguments of an augmentation are numbers") from None

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{a:g}' for a in self.arguments)})" if self.arguments else self.name


@dataclass
class EncoderOutput:
    """What an encoder may return instead of a bare `[B, D]` tensor, for losses that need more.

    Attributes:
        embedding: `[B, D]`.
        tokens: `[B, T, C]` local features.
        mask: `[B, T]`, true where a token is real.
        log_variance: `[B, D]` of a probabilistic embedding.
    """

    embedding: torch.Tensor
    tokens: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    log_variance: torch.Tensor | None = None


@dataclass(frozen=True)
class Preview:
    """One observation as a person can look at it, listen to it or read it.

    Attributes:
        media_type: What a browser calls it: `image/jpeg`, `image/png`, `audio/flac`, `text/plain`, ….
        data: The content; a text in UTF-8.
    """

    media_type: str
    data: bytes


class Modality(Generic[ConfigT]):
    """One kind of observation of a place, and the network that embeds it.

    Subclass it, set `name`, describe the settings in `Config`, and implement `build_encoder`. The
    other methods have defaults that fit numbers and vectors. Instances are sent to loader workers,
    so they must be picklable; keep networks out of `self`.

    Example:
        >>> class Elevation(Modality):
        ...     name = "elevation"
        ...     class Config(ModalityConfig):
        ...         width: int = 64
        ...     def build_encoder(self):
        ...         from torch import nn
        ...         return nn.Sequential(nn.Linear(1, self.config.width), nn.GELU(),
        ...                              nn.Linear(self.config.width, 128))
        ...     def transform(self, sample, *, train, rng):
        ...         return [sample / 1000.0]
        >>> Elevation(Elevation.Config(width=8)).config.width
        8
    """

    name: ClassVar[str]
    Config: ClassVar[type[ModalityConfig]] = ModalityConfig

    reads_files: ClassVar[bool] = False
    """Whether a string in a table is the path of a file, relative to the table, or the value itself."""

    with_gaps: ClassVar[bool] = False
    """Whether a row counts as long as one of several columns is filled; `read` finds None in place of the others."""

    augmentations: ClassVar[Mapping[str, str]] = {}
    """Names that `augment` takes in a stage, each with a sentence on what it does."""

    expected_failures: ClassVar[Mapping[str, str]] = {}
    """Checks of `geobind_core.testing` that are known to fail, each with the reason."""

    config: ConfigT
    augment: tuple[Augmentation, ...] = ()

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    def with_augment(self, augment: Sequence[Augmentation]) -> Modality[ConfigT]:
        """Returns a copy whose `transform(train=True)` applies these augmentations.

        Raises:
            ConfigError: One of them is not among `augmentations`.
        """
        for step in augment:
            if step.name not in self.augmentations:
                raise ConfigError(
                    f"no augmentation '{step.name}' for '{self.name}'. {suggest(step.name, self.augmentations)}"
                )
        changed = copy.copy(self)
        changed.augment = tuple(augment)
        return changed

    def build_encoder(self) -> nn.Module:
        """Builds the network: a batch, as `collate` makes it, to `[B, D]` or an `EncoderOutput`.

        Embeddings need not be normalised; the engine does that. Features that are cheap on an
        accelerator (mel spectrograms, normalisation of pixels) belong in this network.

        Raises:
            WeightsError: `config.pretrained` is set and cannot be had.
        """
        raise TypeError(f"{type(self).__name__} does not define build_encoder()")

    def rebuild_config(self, encoder: nn.Module) -> ConfigT:
        """Returns the settings that rebuild this very network without its pretrained weights.

        A saved space holds the weights already, and must load without a network. Override it when
        `pretrained` also decides the architecture.
        """
        return self.config.model_copy(update={"pretrained": None, "init_from": None})

    def exports(self) -> Mapping[str, Exporter]:
        """Returns the formats of other libraries that `geobind export --to` can write this modality in.

        A modality without any is still exported by `hub`, and by `onnx` where its batch is one tensor.
        """
        return {}

    def read(self, cell: Any) -> Any:
        """Decodes one cell of a table: a path, bytes, a string, numbers, or a tuple of columns.

        Of something long, of which `transform` chooses a part, return an object that knows where it is, with
        `nbytes = math.inf`. Then `transform` decodes, in the same thread or process, and the engine does not
        take the object for a decoded sample that it could keep in memory.

        Raises:
            DataError, OSError, ValueError: The cell cannot be read; the row is counted as bad.
        """
        return cell

    def inspect(self, cell: Any) -> Mapping[str, str | int | float]:
        """Returns what can be said of a cell without decoding all of it: width, sample rate, format, ….

        `geobind data inspect` sums these up. Numbers are given as ranges, words as counts.

        Raises:
            DataError, OSError, ValueError: The cell cannot be read.
        """
        return {}

    def preview(self, cell: Any, size: int = 256) -> Preview | None:
        """Returns a cell for people: in a contact sheet, a report, a web page. None if there is no way.

        Args:
            cell: As `read` takes it.
            size: Longer side of an image, in pixels.

        Raises:
            DataError, OSError, ValueError: The cell cannot be read.
        """
        if isinstance(cell, str | int | float):
            return Preview("text/plain", str(cell).encode())
        return None

    def transform(self, sample: Any, *, train: bool, rng: np.random.Generator) -> Any:
        """Turns a decoded sample into what `collate` takes. Runs on the CPU, in a loader worker.

        Args:
            sample: What `read` returned; may be shared between epochs, so do not change it in place.
            train: Whether the sample trains this modality; augment and crop at random only then.
            rng: The only source of randomness to use, so that runs can be repeated exactly.
        """
        return sample

    def draw(self, rng: np.random.Generator) -> Any:
        """Draws an observation from nowhere, as `read` would return it: for a location, a random place on Earth.

        Losses with `random_negatives` use it. Where it is not defined, other rows of the data set are
        drawn instead.
        """
        raise TypeError(f"{type(self).__name__} does not define draw()")

    def example_cells(self, rng: np.random.Generator) -> Sequence[Any]:
        """Returns a few different cells as `read` takes them: what `geobind plugins check` reads.

        Files as bytes; of different sizes where sizes may differ. Without them the checks use what `draw`
        returns, and `read` is not checked.
        """
        return ()

    def collate(self, samples: Sequence[Any]) -> Any:
        """Makes a batch of samples: a tensor, or a dictionary of tensors with B rows each."""
        import numpy as np
        from torch.utils.data import default_collate

        # default_collate turns a list of floats into a tuple of columns; rows of numbers are arrays.
        rows = [np.asarray(s, dtype=np.float32) if isinstance(s, list | tuple | float) else s for s in samples]
        return default_collate(rows)
