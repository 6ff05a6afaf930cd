"""The section `evaluate` of `stages.yaml`: what is measured after the last stage."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, field_validator

from geobind_core.config.strict import Name, StrictModel

_PERCENT = r"(\d+|\d*\.\d+)\s*%"


def _cutoff(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    if isinstance(value, str) and (match := re.fullmatch(_PERCENT, value.strip())) and 0 < Fraction(match[1]) <= 100:
        return f"{float(match[1]):g}%"
    shown = value if isinstance(value, str) else repr(value)
    raise ValueError(f'found {shown}; expected a whole number, 1 or more, or a share of the gallery such as "1%"')


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _classes(value: Any) -> Any:
    """Returns label -> phrases. A list of labels has the labels themselves as phrases."""
    listed = {label: label for label in value} if isinstance(value, list) and _are_plain(value) else value
    if not isinstance(listed, dict) or not _are_plain(listed) or not listed:
        raise ValueError("expected a list of labels, or a mapping of each label to its phrase, or to several")
    phrases = {}
    for label, given in listed.items():
        several = given if isinstance(given, list) else [given]
        if not several or not all(isinstance(phrase, str | int | float) and str(phrase).strip() for phrase in several):
            raise ValueError(f"label '{label}' has no phrase; expected a text, or a list of texts")
        phrases[str(label)] = [str(phrase) for phrase in several]
    if len(phrases) < 2:
        raise ValueError("there is one class; expected 2 or more")
    known: dict[frozenset[str], str] = {}
    for label, texts in phrases.items():
        if (other := known.setdefault(frozenset(texts), label)) != label:
            raise ValueError(f"labels '{other}' and '{label}' have the same phrases; nothing tells them apart")
    return phrases


def _are_plain(labels: Iterable[Any]) -> bool:
    return all(isinstance(label, str | int | float) for label in labels)


def _composed(value: list[str]) -> list[str]:
    if len(set(value)) < max(len(value), 2):
        raise ValueError(f"found [{', '.join(value)}]; expected two modalities or more, each once")
    return value


def _template(value: str) -> str:
    if value.count("{}") != 1:
        raise ValueError(f"found '{value}'; expected a text with one {{}} where the phrase of a class goes")
    return value


Cutoff = Annotated[
    int | str,
    BeforeValidator(_cutoff),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": f"^{_PERCENT}$"}]}),
]
MetricSettings = Annotated[dict[str, Any], BeforeValidator(_named)]
_LABEL = {"type": ["string", "number"]}
_PHRASES = {"anyOf": [_LABEL, {"type": "array", "items": _LABEL, "minItems": 1}]}
Classes = Annotated[
    dict[str, list[str]],
    BeforeValidator(_classes),
    WithJsonSchema(
        {"anyOf": [{"type": "array", "items": _LABEL}, {"type": "object", "additionalProperties": _PHRASES}]}
    ),
]
Composed = Annotated[list[str], AfterValidator(_composed)]
Template = Annotated[str, AfterValidator(_template)]


def headline_recall(figures: Iterable[str]) -> str:
    """Returns, of the names of a pair's figures, the recall that stands for all: recall@10 if it was measured."""
    recalls = [name for name in figures if name.startswith("recall@")]
    return "recall@10" if "recall@10" in recalls or not recalls else recalls[-1]


class ZeroShotConfig(StrictModel):
    """A classification without training: the class whose texts are the most similar."""

    data: str = Field(description="The data set.")
    modality: str = Field(description="The modality that is classified.")
    text: str = Field(description="The modality that reads the phrases of the classes.")
    label: str = Field(description="The column of the data set's table that says what is right.")
    classes: Classes = Field(description="Labels; or label -> its phrase, or a list of phrases.")
    templates: list[Template] = Field(
        ["{}"], min_length=1, description="Texts with {} for the phrase; their embeddings are averaged."
    )
    rows: int = Field(10_000, ge=1, description="Largest number of held-out rows to classify.")


class MapsConfig(StrictModel):
    """Maps in the report: how much each held-out place is like a text."""

    data: str = Field(description="The data set.")
    modality: str = Field(description="The modality that is compared with the texts at each place.")
    text: str = Field(description="The modality that reads the texts.")
    queries: list[Annotated[str, Field(min_length=1)]] = Field(
        min_length=1, max_length=12, description="The texts; each makes a map."
    )


class EvaluateConfig(StrictModel):
    """What is measured after the last stage."""

    gallery: int = Field(10_000, ge=2, description="Largest number of held-out rows to rank among.")
    recall_at: list[Cutoff] = Field(
        [1, 5, 10, 100], min_length=1, description="The k of recall@k: numbers, or shares of the gallery such as 1%."
    )
    metrics: list[MetricSettings] = Field(
        default_factory=list, description="Further figures: registered names, or mappings of a name and settings."
    )
    compose: list[Composed] = Field(
        default_factory=list, description="Modalities that ask together, by the sum of their embeddings."
    )
    zero_shot: dict[Name, ZeroShotConfig] = Field(
        default_factory=dict, description="Classifications by phrases: name -> what is classified, and how."
    )
    maps: MapsConfig | None = Field(None, description="Maps for the report; default: none.")
    bootstrap: int = Field(
        1000, ge=0, description="How often the queries are drawn anew for 95 % intervals; 0: there are none."
    )
    data: list[str] | None = Field(None, description="Data sets to evaluate on; default: those of the stages.")
    split: Literal["validation", "test"] = Field("test", description="The rows that are held out.")
    batch_size: int = Field(256, ge=1, description="Rows embedded at a time.")
    max_bad_samples: float = Field(0.01, ge=0, le=1, description="Share of rows that may be unreadable.")

    @field_validator("recall_at")
    @classmethod
    def _each_once(cls, recall_at: list[int | str]) -> list[int | str]:
        if twice := sorted({str(k) for k in recall_at if recall_at.count(k) > 1}):
            raise ValueError(f"{', '.join(twice)} is given twice")
        return recall_at
