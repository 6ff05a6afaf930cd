"""From a chain file to a chain: every name looked up, all problems found and shown together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from geobind_core.chain.extras import check_evaluate, load_onlookers, resolve_metrics
from geobind_core.chain.model import Chain, ChainModality
from geobind_core.chain.run_folder import RunFolder
from geobind_core.chain.stages import resolve_stage
from geobind_core.config import overrides
from geobind_core.config.document import Document, PathInDocument, parse
from geobind_core.config.models import ChainConfig
from geobind_core.config.problems import Problem, from_pydantic, suggest
from geobind_core.errors import ConfigError, GeoBindError, PluginError, raise_all
from geobind_core.plugins.manager import PluginManager
from geobind_core.plugins.source import Source
from geobind_core.plugins.stage_kind import StageKind

ModelT = TypeVar("ModelT", bound=BaseModel)


def load_chain(path: Path, plugins: PluginManager, assignments: Sequence[str] = (), base: Path | None = None) -> Chain:
    """Reads and checks a chain file.

    Args:
        path: The file.
        plugins: Looks names up; only the plugins that the file names are imported.
        assignments: Overrides, each `path=value`.
        base: Where relative paths start; default: the file's folder.

    Raises:
        ConfigError, CombinedError: Everything that is wrong with the file, with lines.
    """
    document = parse(path)
    for assignment in assignments:
        overrides.apply(document, assignment)
    return Resolver(document, plugins, base or path.absolute().parent).chain()


def chain_of(folder: Path, plugins: PluginManager) -> Chain | None:
    """Returns the chain of a run folder; None of a space alone.

    Raises:
        RunFolderError: The run folder is not whole.
        CombinedError: The chain is not valid any more.
    """
    run = RunFolder(folder)
    return load_chain(run.chain, plugins, base=run.chain_base()) if run.chain.is_file() else None


class Resolver:
    """Checks one document, collecting problems instead of stopping at the first."""

    def __init__(self, document: Document, plugins: PluginManager, base: Path) -> None:
        self.document = document
        self.base = base
        self.plugins = plugins
        self.problems: list[Problem] = list(document.problems)

    def chain(self) -> Chain:
        """Returns the chain, or raises everything that is wrong."""
        config = self.validate(ChainConfig, self.document.data, ())
        # Sections are looked into even when the whole is not valid, so that one misspelled key does
        # not hide what is wrong elsewhere.
        modalities = {name: m for name, raw in self._section("modalities") if (m := self._modality(name, raw))}
        sources = {name: s for name, raw in self._section("data") if (s := self._source(name, raw))}
        names = self._names("modalities")
        self._check_references(names, modalities)
        stages = self._stages(names, sources, modalities)
        metrics = resolve_metrics(self)
        load_onlookers(self)
        self.raise_problems()
        assert config is not None
        return Chain(
            name=config.name or self.document.path.stem,
            path=self.document.path,
            config=config,
            document=self.document.data,
            modalities=modalities,
            sources=sources,
            stages=tuple(stages),
            plugins=self.plugins,
            metrics=metrics,
        )

    # ------------------------------------------------------------------ problems

    def problem(self, path: PathInDocument, message: str, hint: str = "") -> None:
        """Notes something wrong."""
        self.problems.append(Problem(path, message, hint))

    def validate(self, model: type[ModelT], raw: Any, path: PathInDocument) -> ModelT | None:
        """Validates a part of the document; None if it is not valid."""
        try:
            return model.model_validate(raw)
        except ValidationError as error:
            self.problems += from_pydantic(error, model, path)
            return None

    def find(self, kind: str, name: object, path: PathInDocument) -> Any:
        """Looks a registered name up; None if there is none."""
        try:
            return self.plugins.find(kind, str(name))
        except PluginError as error:
            self.problem(path, error.message, error.hint)
            return None

    def raise_problems(self) -> None:
        """Raises what was found, in the order of the file."""
        errors: dict[tuple[int, str], GeoBindError] = {}
        for problem in self.problems:
            place = self.document.locate(problem.path, problem.line)
            line = problem.line or self.document.line(problem.path)
            error = ConfigError(problem.message, place=place, hint=problem.hint)
            errors.setdefault((line, str(error)), error)
        raise_all([errors[key] for key in sorted(errors)])

    # ------------------------------------------------------------------ sections

    def _section(self, name: str) -> list[tuple[str, dict[str, Any]]]:
        """Returns the entries of a section that can be looked into."""
        section = self.document.data.get(name)
        if not isinstance(section, dict):
            return []
        return [(k, v if isinstance(v, dict) else {}) for k, v in section.items() if isinstance(v, dict | None)]

    def _names(self, name: str) -> list[str]:
        """Returns the names in a section, be their settings as wrong as they may."""
        section = self.document.data.get(name)
        return list(section) if isinstance(section, dict) else []

    def _modality(self, name: str, raw: Mapping[str, Any]) -> ChainModality | None:
        path = ("modalities", name)
        provided = self.find("modality", raw.get("plugin") or name, (*path, "plugin") if "plugin" in raw else path)
        if provided is None:
            return None
        pretrained = raw.get("pretrained")
        if isinstance(pretrained, str) and (local := self._local(pretrained)) is not None:
            raw = {**raw, "pretrained": str(local)}
        config = self.validate(provided.cls.Config, raw, path)
        return None if config is None else ChainModality(provided.cls(config), provided)

    def _local(self, pretrained: str) -> Path | None:
        """Returns the file or folder of weights, relative to the chain file like all others, if it is one."""
        try:
            local = self.base / Path(pretrained).expanduser()
            return local if pretrained and local.exists() else None
        except (OSError, RuntimeError):  # longer than a file name may be, or `~somebody` unknown here
            return None

    def _source(self, name: str, raw: Mapping[str, Any]) -> Source[Any] | None:
        path = ("data", name)
        if "source" not in raw:
            self.plugins.load_all()
            known = suggest("", self.plugins.registry.names("source"))
            self.problem((*path, "source"), f"'source' is required: the registered name of a kind of data set. {known}")
            return None
        provided = self.find("source", raw["source"], (*path, "source"))
        if provided is None:
            return None
        config = self.validate(provided.cls.Config, raw, path)
        if config is None:
            return None
        source: Source[Any] = provided.cls(config, self.base)
        return source

    def _check_references(self, names: Sequence[str], modalities: Mapping[str, ChainModality]) -> None:
        binding = self.document.data.get("binding")
        if isinstance(binding, str) and binding not in names:
            self.problem(("binding",), f"no modality '{binding}'. {suggest(binding, names)}")
        for name, raw in self._section("modalities"):
            other = raw.get("init_from")
            path = ("modalities", name, "init_from")
            if other is not None and other not in names:
                self.problem(path, f"no modality '{other}'. {suggest(other, names)}")
            elif other is not None and name in _ancestors(name, modalities):
                by_way_of = "" if other == name else f", by way of '{other}'"
                self.problem(path, f"'{name}' starts from itself{by_way_of}.")
        for name, raw in self._section("data"):
            for key in ("fields", "labels"):
                for modality in raw[key] if isinstance(raw.get(key), dict) else ():
                    if modality not in names:
                        where = ("data", name, key, modality)
                        self.problem(where, f"no modality '{modality}'. {suggest(modality, names)}")
        check_evaluate(self, names, self._names("data"))

    def _stages(
        self, names: Sequence[str], sources: Mapping[str, Source[Any]], modalities: Mapping[str, ChainModality]
    ) -> list[StageKind[Any]]:
        raw_stages = self.document.data.get("stages")
        stages: list[StageKind[Any]] = []
        seen: dict[str, int] = {}
        trained: set[str] = set()
        for i, raw in enumerate(raw_stages if isinstance(raw_stages, list) else []):
            if not isinstance(raw, dict):
                continue
            path = ("stages", i)
            provided = self.find("stage_kind", raw.get("kind", "align"), (*path, "kind"))
            config = self.validate(provided.cls.Config, raw, path) if provided else None
            if config is None:
                if isinstance(raw.get("train"), str | list):
                    trained |= {raw["train"]} if isinstance(raw["train"], str) else set(map(str, raw["train"]))
                continue
            if config.name in seen:
                self.problem(
                    (*path, "name"), f"stage '{config.name}' is given twice; the first is stages[{seen[config.name]}]."
                )
            seen[config.name] = i
            data_sets = self._names("data")
            for name in config.data_sets:
                if name not in data_sets:
                    self.problem((*path, "data"), f"no data set '{name}'. {suggest(name, data_sets)}")
            binding = str(self.document.data.get("binding"))
            config = resolve_stage(self, config, path, binding, names, modalities)
            stage: StageKind[Any] = provided.cls(config)
            self._check_weights(stage, path, raw, trained, modalities)
            self._check_fields(stage, path, names, sources)
            trained |= set(stage.trains())
            stages.append(stage)
        return stages

    def _check_weights(
        self,
        stage: StageKind[Any],
        path: PathInDocument,
        raw: Mapping[str, Any],
        trained: set[str],
        modalities: Mapping[str, ChainModality],
    ) -> None:
        for name in stage.uses():
            if not has_weights(name, trained, modalities):
                self.problem(
                    (*path, "anchor") if "anchor" in raw else path,
                    f"anchor '{name}' has no weights: no earlier stage trains it, and it has no `pretrained`.",
                    f"Add a stage that trains '{name}' before this one, or set modalities.{name}.pretrained; "
                    "`anchor: []` aligns several trained modalities with each other.",
                )

    def _check_fields(
        self, stage: StageKind[Any], path: PathInDocument, names: Sequence[str], sources: Mapping[str, Source[Any]]
    ) -> None:
        for data in stage.config.data_sets:
            source = sources.get(data)
            fields = {*(source.config.fields or ()), *source.default_fields} if source is not None else set()
            for name in dict.fromkeys([*stage.trains(), *stage.uses()]) if fields else ():
                if name in names and name not in fields:
                    self.problem(
                        (*path, "data"),
                        f"data set '{data}' has no field for '{name}'. {suggest(name, fields)}",
                        f"Map it: data.{data}.fields.{name}: <column>",
                    )


def has_weights(name: str, trained: set[str], modalities: Mapping[str, ChainModality]) -> bool:
    """Whether a modality has weights before it is trained: its own, or those of what it starts from."""
    # What is not known has been reported already.
    return any(
        n in trained or n not in modalities or modalities[n].modality.config.pretrained is not None
        for n in (name, *_ancestors(name, modalities))
    )


def _ancestors(name: str, modalities: Mapping[str, ChainModality]) -> list[str]:
    """Returns what a modality starts from, what that starts from, and so on; stops at a cycle."""
    found: list[str] = []
    while (known := modalities.get(name)) is not None:
        start = known.modality.config.init_from
        if start is None or start in found:
            break
        found.append(start)
        name = start
    return found
