"""Checks of a modality up to the batch: `read`, `transform`, `collate`, and the way into other processes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from unittest import SkipTest

from geobind_core.errors import GeoBindError
from geobind_core.plugins.modality import Preview
from geobind_core.testing.check import CheckError, Definition, require
from geobind_core.testing.modality_subject import ModalitySubject, embedding, generator, transformed
from geobind_core.testing.values import CLOSE, distance, same

REFUSALS = (GeoBindError, OSError, ValueError, TypeError)


def _example_cells(subject: ModalitySubject) -> None:
    samples = subject.samples()
    require(same(samples[0], samples[1]) is not True, "the first two example cells give the same sample")


def _read_again(subject: ModalitySubject) -> None:
    for number, cell in enumerate(subject.needed_cells()):
        first, second = subject.needed_decoded[number], subject.modality.read(cell)
        require(same(first, second) is not False, f"`read` of example cell {number} returns something else each time")
        samples = [transformed(subject.modality, decoded) for decoded in (first, second)]
        require(same(*samples) is not False, f"example cell {number} read twice makes two samples")


def _unreadable(subject: ModalitySubject) -> None:
    for cell in subject.unreadable:
        try:
            sample = transformed(subject.modality, subject.modality.read(cell))
        except REFUSALS:
            continue
        except Exception as error:
            kinds = ", ".join(kind.__name__ for kind in REFUSALS)
            raise CheckError(f"the cell {cell!r} raises {type(error).__name__}; expected one of {kinds}") from error
        raise CheckError(f"the cell {cell!r} was taken for a sample: {sample!r:.200}")


def _same_seed(subject: ModalitySubject) -> None:
    for train in (False, True):
        for number, decoded in enumerate(subject.needed_decoded):
            found = [transformed(subject.modality, decoded, train=train) for _ in range(2)]
            require(same(*found) is not False, f"train={train}: sample {number} differs with the same seed")


def _no_chance(subject: ModalitySubject) -> None:
    for number, decoded in enumerate(subject.needed_decoded):
        found = [transformed(subject.modality, decoded, seed=seed) for seed in (0, 1)]
        require(same(*found) is not False, f"train=False: sample {number} depends on the seed")


def _in_place(subject: ModalitySubject) -> None:
    for number, kept in enumerate(subject.needed_decoded):
        before, decoded = copy.deepcopy(kept), copy.deepcopy(kept)
        for train in (False, True):
            subject.modality.transform(decoded, train=train, rng=generator())
            require(same(before, decoded) is not False, f"train={train}: `transform` changed sample {number} itself")


def _draw(subject: ModalitySubject) -> None:
    if not subject.draws:
        raise SkipTest("draw() is not defined")
    drawn = [transformed(subject.modality, subject.modality.draw(generator(seed))) for seed in (0, 0, 1)]
    require(same(drawn[0], drawn[1]) is not False, "`draw` returns something else each time with the same seed")
    require(same(drawn[0], drawn[2]) is not True, "`draw` returns the same with another seed")
    subject.modality.collate(drawn)


def _picklable(subject: ModalitySubject) -> None:
    again = pickle.loads(pickle.dumps(subject.modality))
    for number, decoded in enumerate(subject.needed_decoded):
        for train in (False, True):
            found = [transformed(modality, decoded, train=train) for modality in (subject.modality, again)]
            require(same(*found) is not False, f"train={train}: after pickling, sample {number} is another")
    pickle.loads(pickle.dumps(subject.needed_samples))


def _collate(subject: ModalitySubject) -> None:
    subject.batch()
    trained = [transformed(subject.modality, decoded, train=True) for decoded in subject.needed_decoded]
    try:
        subject.collated(trained)
    except Exception as error:
        raise CheckError(f"train=True: {type(error).__name__}: {error}") from error
    network, together = subject.needed_output
    for number, sample in enumerate(subject.needed_samples):
        alone = embedding(network, subject.modality.collate([sample]))
        apart = distance(alone[0], together[number])
        # Not `>`: NaN is no agreement.
        require(
            apart <= CLOSE, f"sample {number} collated with others is embedded otherwise than alone, by {apart:.1%}"
        )


def _shown(subject: ModalitySubject) -> None:
    for cell in subject.needed_cells():
        said = subject.modality.inspect(cell)
        plain = isinstance(said, Mapping) and all(
            isinstance(key, str) and isinstance(value, str | int | float) for key, value in said.items()
        )
        require(plain, f"`inspect` returns {said!r}; expected names with texts or numbers")
        preview = subject.modality.preview(cell)
        right = preview is None or (isinstance(preview, Preview) and "/" in preview.media_type)
        require(right, f"`preview` returns {preview!r}; expected a Preview, or None")


READING_CHECKS: tuple[Definition[ModalitySubject], ...] = (
    Definition(
        "example_cells",
        "What follows is checked on cells as they stand in tables: they are read, transformed and differ.",
        "Return a few different cells from `example_cells`, of different sizes where sizes may differ.",
        _example_cells,
    ),
    Definition(
        "read_again",
        "A row gives the same sample whoever reads it and whenever, so that runs can be repeated and embeddings kept.",
        "Draw nothing in `read`; what is random belongs in `transform`, from its `rng`.",
        _read_again,
    ),
    Definition(
        "unreadable",
        "A cell that cannot be read is counted as a bad row; it neither trains the network nor ends the run.",
        "Raise DataError or ValueError in `read` for what is not as expected; a missing value is None.",
        _unreadable,
    ),
    Definition(
        "transform_same_seed",
        "The same seed gives the same sample, so that an interrupted run goes on as if nothing had happened.",
        "Take random numbers from `rng` only, not from random, numpy.random or torch.",
        _same_seed,
    ),
    Definition(
        "transform_evaluation",
        "Outside training nothing is random: frozen anchors are embedded once and kept.",
        "Use `rng` only where `train` is true.",
        _no_chance,
    ),
    Definition(
        "transform_in_place",
        "A decoded sample that is kept in memory is the same in every epoch.",
        "Copy before changing: `sample = sample.copy()`, or write `sample * 2` for `sample *= 2`.",
        _in_place,
    ),
    Definition(
        "draw",
        "Random negatives are drawn repeatably, and are samples like others.",
        "Draw from `rng` only, and return what `read` returns.",
        _draw,
    ),
    Definition(
        "picklable",
        "Loader workers get a copy of the modality, and do the same as the original.",
        "Keep networks, open files, locks and lambdas out of `self`; define the class at the top of its module.",
        _picklable,
    ),
    Definition(
        "collate",
        "A sample means the same whatever samples it is put into a batch with, also where their sizes differ.",
        "Where samples are padded, return a mask with them and use it in the network.",
        _collate,
    ),
    Definition(
        "inspect_and_preview",
        "`geobind data inspect`, contact sheets and reports can show the cells.",
        "`inspect` returns names with texts or numbers; `preview` a Preview or None.",
        _shown,
    ),
)
