"""Classification without training: the class whose texts are the most similar, as CLIP does it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import normalize

from geobind_core.config.evaluate import ZeroShotConfig
from geobind_core.errors import DataError
from geobind_core.evaluation import bootstrap
from geobind_core.evaluation.held_out import Embedder, some_rows
from geobind_core.evaluation.retrieve import Found, retrieve
from geobind_core.space.space import Space


def classify(
    name: str, task: ZeroShotConfig, embedder: Embedder, labels: npt.NDArray[np.int64], seed: int
) -> dict[str, Any]:
    """Classifies the held-out rows of a data set.

    Args:
        name: The name of the classification, for messages.
        task: What is classified, and by which phrases.
        embedder: Of the data set.
        labels: A number of a class for each row of the data set, -1 for none; see `class_numbers`.
        seed: Decides which rows are taken when there are too many, and draws.

    Returns:
        What stands under `zero_shot` in `metrics.json`.

    Raises:
        DataError: No held-out row has a label, or too many cannot be read.
    """
    rows = embedder.rows([task.modality])
    rows = some_rows(rows[labels[rows] >= 0], task.rows, seed)
    if not len(rows):
        raise DataError(
            f"no held-out row has both '{task.modality}' and a value of '{task.label}'.",
            place=f"evaluate.zero_shot.{name}",
        )
    readable, embeddings = embedder.embed(task.modality, rows)
    right = labels[readable]
    found = retrieve(embeddings, class_embeddings(embedder.space, task), own=torch.from_numpy(right))
    return {
        "data": embedder.data.name,
        "modality": task.modality,
        "text": task.text,
        "label": task.label,
        "rows": len(readable),
        **_figures(found, right, list(task.classes), embedder.config.bootstrap, seed),
    }


def class_embeddings(space: Space, task: ZeroShotConfig) -> torch.Tensor:
    """Returns `[C, D]`: of each class, the mean of all its texts, of unit norm."""
    found = []
    for phrases in task.classes.values():
        texts = [template.replace("{}", phrase) for phrase in phrases for template in task.templates]
        found.append(normalize(space.embed(task.text, texts).cpu().mean(dim=0), dim=0))
    return torch.stack(found)


def _figures(found: Found, right: npt.NDArray[np.int64], classes: list[str], times: int, seed: int) -> dict[str, Any]:
    """Returns figures of what was found among the classes for each row, and of the right one `[N]`."""
    count = len(right)
    ks = (1, 5) if len(classes) > 5 else (1,)
    accuracy = {k: int((found.ranks <= k).sum()) for k in ks}
    confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(confusion, (right, found.nearest.numpy()), 1)
    rows = confusion.sum(axis=1)
    recalls = {label: int(confusion[i, i]) / int(rows[i]) if rows[i] else None for i, label in enumerate(classes)}
    present = [recall for recall in recalls.values() if recall is not None]
    rng = np.random.default_rng(seed)
    intervals: Mapping[str, Any] = {
        f"accuracy@{k}": bootstrap.of_share(hits, count, times, rng) for k, hits in accuracy.items() if times
    }
    return {
        **{f"accuracy@{k}": hits / count for k, hits in accuracy.items()},
        "mean_per_class_recall": sum(present) / len(present),
        **{f"chance_accuracy@{k}": k / len(classes) for k in ks},
        "largest_class": int(rows.max()) / count,
        **({"intervals": intervals} if times else {}),
        "classes": classes,
        "recall": recalls,
        "confusion": confusion.tolist(),
    }
