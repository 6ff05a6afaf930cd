"""The grammar of `stages.yaml`. Plugins add their own settings; theirs are checked by their classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from geobind_core.config.evaluate import EvaluateConfig as EvaluateConfig
from geobind_core.config.strict import TEXT, OneOrMore
from geobind_core.config.strict import Name as Name
from geobind_core.config.strict import StrictModel as StrictModel


def _nothing_is_empty(value: Any) -> Any:
    return {} if value is None else value


_WEIGHTS = {"type": "object", "additionalProperties": {"type": "number", "exclusiveMinimum": 0}}
DataSets = Annotated[
    str | list[str] | dict[str, Annotated[float, Field(gt=0)]],
    WithJsonSchema(
        {"anyOf": [TEXT, {"type": "array", "items": TEXT, "minItems": 1}, {**_WEIGHTS, "minProperties": 1}]}
    ),
]


PluginSettings = Annotated[dict[str, Any], BeforeValidator(_nothing_is_empty)]
Share = Annotated[float, Field(ge=0, lt=1)]
Steps = Literal["step", "epoch"]


class AdamW(StrictModel):
    """AdamW; biases, norms and other vectors get no weight decay, as in open_clip."""

    name: Literal["adamw"] = "adamw"
    lr: float = Field(5e-5, gt=0, description="Learning rate at its highest.")
    betas: tuple[Share, Share] = Field((0.9, 0.98), description="beta1, beta2.")
    eps: float = Field(1e-6, gt=0, description="Added to the denominator.")
    weight_decay: float = Field(0.2, ge=0, description="Decoupled weight decay.")
    clip_norm: float | None = Field(None, gt=0, description="Largest norm of the whole gradient.")


class ConstantSchedule(StrictModel):
    """The same learning rate all along."""

    name: Literal["constant"] = "constant"


class CosineWarmRestarts(StrictModel):
    """Cosine from `lr` to `min_lr` over `t0` units, then again, `t_mult` times as long."""

    name: Literal["cosine_warm_restarts"]
    t0: float = Field(gt=0, description="Length of the first cycle, in `unit`.")
    t_mult: int = Field(1, ge=1, description="Each cycle is this many times as long as the last.")
    min_lr: float = Field(0.0, ge=0, description="Learning rate at the end of a cycle.")
    unit: Steps = Field("step", description="Unit of t0.")


class CosineWarmup(StrictModel):
    """Linear up to `lr` over `warmup` units, then cosine to `min_lr` at the end of the stage.

    With a warm-up of w steps, step i of them (from 1) has i / (w + 1) of `lr`, and the step after it all of it.
    """

    name: Literal["cosine_warmup"]
    warmup: float = Field(0, ge=0, description="Length of the rise, in `unit`.")
    min_lr: float = Field(0.0, ge=0, description="Learning rate at the end of the stage.")
    unit: Steps = Field("step", description="Unit of warmup.")


Schedule = Annotated[ConstantSchedule | CosineWarmRestarts | CosineWarmup, Field(discriminator="name")]


class PairConfig(StrictModel):
    """An edge: two modalities drawn together, with what differs from the stage's loss."""

    modalities: tuple[str, str] = Field(description="first, second.")
    weight: float = Field(1.0, gt=0, description="Weight of this pair; weights are normalised to sum 1.")
    loss: dict[str, Any] = Field(default_factory=dict, description="Overrides of the stage's loss.")

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"modalities": value} if isinstance(value, list | tuple) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        long_form = handler.resolve_ref_schema(handler(core))
        return {"anyOf": [long_form["properties"]["modalities"], dict(long_form)], "title": cls.__name__}


class CheckpointConfig(StrictModel):
    """When the state of an unfinished stage is written."""

    minutes: float = Field(5.0, gt=0, description="Write after this many minutes.")
    steps: int | None = Field(None, ge=1, description="Write after this many steps as well.")


class StageConfig(StrictModel):
    """What every stage has, whatever its kind."""

    name: Name = Field(description="Unique name; the stage's folder is named after it.")
    kind: str = Field("align", description="Registered kind of stage.")
    data: DataSets | None = Field(
        None, description="The data set, one of `data`; or several, as a list or with the weight of each."
    )

    @model_validator(mode="after")
    def _named_data(self) -> StageConfig:
        if self.data is not None and not self.data_sets:
            raise ValueError("data names no data set")
        if isinstance(self.data, list) and (twice := _twice(self.data)):
            raise ValueError(f"data names {', '.join(twice)} twice")
        return self

    @property
    def data_sets(self) -> tuple[str, ...]:
        """The names of the data sets."""
        if self.data is None:
            return ()
        return (self.data,) if isinstance(self.data, str) else tuple(self.data)

    @property
    def data_text(self) -> str:
        """The data sets as a person reads them."""
        if isinstance(self.data, dict):
            return " + ".join(f"{weight:g} {name}" for name, weight in self.data.items())
        return " + ".join(self.data_sets)


def _twice(names: Sequence[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})


class AlignConfig(StageConfig):
    """A stage that trains encoders towards frozen ones."""

    train: OneOrMore = Field(description="The modalities to train.", min_length=1)
    anchor: OneOrMore | None = Field(
        None, description="The frozen modalities to align to; default: the binding modality."
    )
    data: DataSets = Field(description="The data set, one of `data`; or several, as a list or with the weight of each.")
    pairs: list[PairConfig] | None = Field(
        None, description="Edges, as [first, second]; default: each trained with each anchor.", min_length=1
    )
    loss: dict[str, Any] = Field(
        default_factory=dict, description="A loss and its settings, such as {name: infonce, direction: both}."
    )
    batch_size: int = Field(256, ge=2, description="The pool of negatives, over all devices.")
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description="Rows that go through the networks at a time; does not change the loss, batch normalisation apart.",
    )
    freeze_trunk: OneOrMore = Field(
        default_factory=list, description="Trained modalities of which only the projection is trained."
    )
    batch_norm: Literal["train", "frozen"] = Field(
        "train",
        description="What batch normalisation goes by: the rows that are in the network, or its stored statistics.",
    )
    anchor_cache: Literal["float32", "float16", "off"] = Field(
        "float32",
        description="How embeddings of what is frozen are kept between epochs and runs; off: they are not.",
    )
    anchor_views: int | None = Field(
        None,
        ge=1,
        description="Views that are drawn of each sample of an augmented anchor, and cached; default: a new one "
        "in every epoch, embedded live.",
    )
    epochs: int = Field(10, ge=1, description="Passes over the training rows.")
    optimizer: AdamW = AdamW()
    scheduler: Schedule = ConstantSchedule()
    augment: dict[str, OneOrMore] = Field(
        default_factory=dict, description="Modality -> augmentations, such as randaugment(3)."
    )
    max_bad_samples: float = Field(
        0.01, ge=0, le=1, description="Share of rows that may be unreadable before the stage stops."
    )
    checkpoint: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="after")
    def _consistent(self) -> AlignConfig:
        both = sorted(set(self.train) & set(self.anchor or []))
        if both:
            raise ValueError(f"{', '.join(both)} cannot be both trained and anchor")
        for key, names in (("train", self.train), ("anchor", self.anchor or []), ("freeze_trunk", self.freeze_trunk)):
            if twice := _twice(names):
                raise ValueError(f"{key} names {', '.join(twice)} twice")
        if others := sorted(set(self.freeze_trunk) - set(self.train)):
            raise ValueError(f"freeze_trunk names {', '.join(others)}; expected some of train: {', '.join(self.train)}")
        if self.anchor_views is not None and self.anchor_cache == "off":
            raise ValueError("anchor_views are kept in the cache; anchor_cache: off excludes them")
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            raise ValueError(f"micro_batch_size {self.micro_batch_size} is larger than batch_size {self.batch_size}")
        return self


class LoaderConfig(StrictModel):
    """How samples are read."""

    workers: int | None = Field(
        None,
        ge=0,
        description="Loader processes; 0 reads in the training process with threads. Default: 0 when the "
        "decoded samples fit in decoded_cache_mib, else one for each core but one.",
    )
    decoded_cache_mib: int = Field(
        1024, ge=0, description="Memory for samples that are kept decoded between epochs, in MiB."
    )


class RunConfig(StrictModel):
    """Settings that hold for the whole run."""

    seed: int = Field(0, ge=0, description="Seed of initial weights, order and augmentation.")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = Field(
        None, description="Precision of the networks; default: what `accelerate config` says, or no."
    )
    compile: bool = Field(False, description="Whether the networks are compiled by torch.compile.")
    channels_last: bool | None = Field(
        None, description="Whether convolutions work on channels-last memory; default: on CUDA devices."
    )
    log_with: OneOrMore = Field(["tensorboard"], description="Accelerate's trackers; [] for none.")
    loader: LoaderConfig = LoaderConfig()
    split_distance_km: float = Field(
        1.0, ge=0, description="A held-out place closer than this to a training place is reported; 0: none is."
    )
    strict_splits: bool = Field(False, description="Whether such a place ends the run before it starts.")
    identical_files: Literal["error", "warn", "off"] = Field(
        "error", description="What is done about held-out files that are training files as well."
    )


class ChainConfig(RunConfig):
    """`stages.yaml` as a whole."""

    name: Name | None = Field(None, description="Name of the run folder; default: the file's name.")
    binding: str = Field(description="The modality that stages align to when they name no anchor.")
    embed_dim: int | None = Field(None, ge=1, description="Dimension of the space; default: that of the first anchor.")
    modalities: dict[Name, PluginSettings] = Field(description="Modality -> settings of its plugin.", min_length=1)
    data: dict[Name, PluginSettings] = Field(description="Data set -> its source and settings.", min_length=1)
    stages: list[dict[str, Any]] = Field(description="The chain, in order.", min_length=1)
    evaluate: EvaluateConfig = EvaluateConfig()
    plugins: OneOrMore = Field(
        default_factory=list, description="Plugins that only look on: entry points to load though nothing names them."
    )
