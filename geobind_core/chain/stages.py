"""The defaults of an `align` stage filled in: its anchors, its pairs, the direction of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from geobind_core.chain.model import ChainModality
from geobind_core.config.document import PathInDocument
from geobind_core.config.models import AlignConfig, PairConfig, StageConfig
from geobind_core.config.problems import suggest
from geobind_core.errors import ConfigError
from geobind_core.plugins.modality import Augmentation

if TYPE_CHECKING:
    from geobind_core.chain.resolve import Resolver


def resolve_stage(
    resolver: Resolver,
    config: StageConfig,
    path: PathInDocument,
    binding: str,
    names: Sequence[str],
    modalities: Mapping[str, ChainModality],
) -> StageConfig:
    """Returns the settings with defaults filled in; what is wrong is noted with the resolver."""
    if not isinstance(config, AlignConfig):
        return config
    for where, name in _named(config, path):
        if name not in names:
            resolver.problem(where, f"no modality '{name}'. {suggest(name, names)}")
    anchors = _anchors(config, binding)
    if not anchors and len(config.train) < 2:
        reason = f"'{binding}' is the binding modality and " if config.anchor is None else ""
        resolver.problem(
            (*path, "train" if config.anchor is None else "anchor"),
            f"{reason}there is no anchor to train '{config.train[0]}' towards.",
            "Name one: anchor: ground_image",
        )
    pairs = _pairs(resolver, config, anchors, path, names)
    _check_augmentations(resolver, config, anchors, path, modalities)
    if config.anchor_views is not None and not {*anchors, *config.freeze_trunk} & set(config.augment):
        resolver.problem(
            (*path, "anchor_views"),
            "nothing that this stage keeps frozen is augmented, so there is one view of each sample.",
            f"Augment an anchor: augment: {{{anchors[0] if anchors else 'anchor'}: …}}, or leave anchor_views out.",
        )
    return config.model_copy(update={"anchor": anchors, "pairs": pairs})


def _named(config: AlignConfig, path: PathInDocument) -> list[tuple[PathInDocument, str]]:
    """Returns every modality that a stage names, and where."""
    named: list[tuple[PathInDocument, str]] = [((*path, "train", i), name) for i, name in enumerate(config.train)]
    named += [((*path, "anchor", i), name) for i, name in enumerate(config.anchor or ())]
    named += [((*path, "pairs", i), name) for i, pair in enumerate(config.pairs or ()) for name in pair.modalities]
    return named


def _anchors(config: AlignConfig, binding: str) -> list[str]:
    if config.anchor is not None:
        return config.anchor
    if config.pairs is not None:
        named = dict.fromkeys(name for pair in config.pairs for name in pair.modalities)
        return [name for name in named if name not in config.train]
    return [] if binding in config.train else [binding]


def _pairs(
    resolver: Resolver, config: AlignConfig, anchors: Sequence[str], path: PathInDocument, names: Sequence[str]
) -> list[PairConfig]:
    taking_part = [*config.train, *anchors]
    if config.pairs is None:
        edges = [(t, a) for t in config.train for a in anchors] or list(combinations(config.train, 2))
        pairs = [PairConfig(modalities=edge) for edge in edges]
    else:
        pairs = config.pairs
    resolved = []
    for i, pair in enumerate(pairs):
        where: PathInDocument = (*path, "pairs", i) if config.pairs is not None else path
        first, second = pair.modalities
        outside = [name for name in dict.fromkeys(pair.modalities) if name not in taking_part]
        if not {first, second} <= set(names):
            pass  # reported already; what follows from it is not worth a line
        elif outside:
            for name in outside:
                resolver.problem(where, f"'{name}' is neither trained nor anchor here. {suggest(name, taking_part)}")
        elif first == second:
            resolver.problem(where, f"'{first}' is paired with itself.")
        elif first not in config.train and second not in config.train:
            resolver.problem(where, f"neither '{first}' nor '{second}' is trained in this stage.")
        loss = _loss(resolver, config, pair, where, path)
        resolved.append(pair.model_copy(update={"loss": loss}))
    paired = {name for pair in pairs for name in pair.modalities}
    for name in taking_part if paired and paired <= set(names) else ():
        if name not in paired:
            resolver.problem((*path, "pairs"), f"'{name}' is in no pair of this stage.")
    return resolved


def _loss(
    resolver: Resolver, config: AlignConfig, pair: PairConfig, where: PathInDocument, path: PathInDocument
) -> dict[str, Any]:
    """Returns the complete settings of a pair's loss: the stage's, with the pair's own on top."""
    own = bool(pair.loss)
    inherited = {"name": "infonce", **config.loss}
    if pair.loss.get("name", inherited["name"]) != inherited["name"]:
        inherited = {}  # another loss knows nothing of these settings
    settings: dict[str, Any] = {**inherited, **pair.loss}
    loss_path = (*where, "loss") if own else (*path, "loss")
    provided = resolver.find("loss", settings["name"], (*loss_path, "name"))
    validated = resolver.validate(provided.cls.Config, settings, loss_path) if provided else None
    if validated is None:
        return settings
    complete: dict[str, Any] = validated.model_dump(mode="json")
    direction = complete["direction"]
    if direction in ("train_to_anchor", "anchor_to_train"):
        first, second = (name in config.train for name in pair.modalities)
        if first == second:
            resolver.problem(
                (*loss_path, "direction"),
                f"found '{direction}' for a pair of {'two trained modalities' if first else 'two anchors'}; "
                "expected first_to_second, second_to_first or both.",
            )
        from_first = first == (direction == "train_to_anchor")
        complete["direction"] = "first_to_second" if from_first else "second_to_first"
    return complete


def _check_augmentations(
    resolver: Resolver,
    config: AlignConfig,
    anchors: Sequence[str],
    path: PathInDocument,
    modalities: Mapping[str, ChainModality],
) -> None:
    for name, texts in config.augment.items():
        where = (*path, "augment", name)
        if name not in (*config.train, *anchors):
            resolver.problem(where, f"'{name}' is not in this stage. {suggest(name, (*config.train, *anchors))}")
            continue
        try:
            steps = [Augmentation.parse(text) for text in texts]
            if name in modalities:
                modalities[name].modality.with_augment(steps)
        except ConfigError as error:
            resolver.problem(where, error.message)
        except ValueError as error:
            resolver.problem(where, f"{error}.")
