"""A loss that trains another similarity than the cosine is evaluated by it: a probabilistic one, as PCME++ has it."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import torch

from geobind_core import Space

PROBABILISTIC = """\
    import numpy as np
    from geobind_core import EncoderOutput, Loss, LossConfig, LossOutput, Modality, hookimpl

    def distance(first, second):
        spread = [side.log_variance.exp().sum(dim=-1) for side in (first, second)]
        return 2 - 2 * first.embedding @ second.embedding.T + spread[0][:, None] + spread[1][None, :]

    class Moss(Modality):
        name = "moss"

        def build_encoder(self):
            import torch
            from torch import nn

            class Encoder(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.mean, self.log_variance = nn.Linear(2, 8), nn.Linear(2, 8)
                    nn.init.normal_(self.log_variance.weight, std=2)
                    nn.init.constant_(self.log_variance.bias, -2)

                def forward(self, batch):
                    return EncoderOutput(self.mean(batch), log_variance=self.log_variance(batch))

            return Encoder()

        def transform(self, sample, *, train, rng):
            return np.float32(sample)

    class Fern(Moss):
        name = "fern"

    class Probabilistic(Loss):
        name = "probabilistic"
        needs = ("log_variance",)

        def similarity(self):
            return lambda query, gallery: -distance(query, gallery)

        def build(self):
            import torch
            from torch import nn

            class Module(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.a, self.b = (nn.Parameter(torch.tensor(5.0)) for _ in range(2))

                def forward(self, first, second, same_label=None):
                    logits = self.b - self.a * distance(first, second)
                    own = torch.eye(len(logits), device=logits.device)
                    return LossOutput(nn.functional.binary_cross_entropy_with_logits(logits, own))

            return Module()

    @hookimpl
    def geobind_register_modalities():
        return [Moss, Fern]

    @hookimpl
    def geobind_register_losses():
        return [Probabilistic]
    """
CHAIN = """\
binding: moss
embed_dim: 8
log_with: []
modalities: {moss: {plugin: moss}, fern: {plugin: fern}, heather: }
data:
  moor:
    {source: table, path: moor.csv, fields: {moss: [x, y], fern: [y, x], heather: [x, x]}, split: {by: hash, test: 0.5}}
stages:
  - {name: moor, train: [moss, fern], anchor: [], data: moor, epochs: 1, batch_size: 8, loss: {name: probabilistic}}
  - {name: heath, train: heather, anchor: moss, data: moor, epochs: 1, batch_size: 8}
evaluate: {recall_at: [1, 3]}
"""


def outputs(space: Space, name: str, cells: list[tuple[float, float]]) -> Any:
    with torch.inference_mode():
        return space.encoder(name)(torch.tensor(cells))


def test_its_pair_is_ranked_by_it_and_others_by_the_cosine(
    add: Any, moor: Path, geobind: Callable[..., CompletedProcess[str]]
) -> None:
    add("moss", PROBABILISTIC, entry_points=dict.fromkeys(("moss", "fern", "probabilistic"), "geobind_plugin_moss"))
    (moor / "chain.yaml").write_text(CHAIN)
    rng = np.random.default_rng(0)
    places = rng.random((60, 2)).round(4)
    (moor / "moor.csv").write_text("key,x,y\n" + "".join(f"{i},{x},{y}\n" for i, (x, y) in enumerate(places)))
    done = geobind("run", "chain.yaml")
    assert done.returncode == 0, done.stderr
    pairs = json.loads((moor / "runs/chain/metrics.json").read_text())["pairs"]

    from geobind_core.chain.builtin import plugin_manager
    from geobind_core.chain.resolve import load_chain
    from geobind_core.data.paired import PairedData

    source = load_chain(moor / "chain.yaml", plugin_manager()).sources["moor"]
    cells = places[PairedData("moor", source.observations(), source.config).rows("test", ["moss"])].astype(np.float32)
    space = Space.load(moor / "runs/chain")
    moss, fern = outputs(space, "moss", cells.tolist()), outputs(space, "fern", cells[:, ::-1].tolist())
    heather = outputs(space, "heather", cells[:, [0, 0]].tolist())

    def reciprocal(similarity: torch.Tensor) -> float:
        ranks = (similarity >= similarity.diagonal()[:, None]).sum(dim=1)
        return float((1 / ranks.double()).mean())

    variances = [side.log_variance.double().exp().sum(dim=-1) for side in (moss, fern)]
    cosine = moss.embedding.double() @ fern.embedding.double().T
    probabilistic = (2 * cosine - 2 - variances[0][:, None] - variances[1][None, :]).float()
    found = pairs["moss_to_fern"]["mean_reciprocal_rank"]
    assert found == reciprocal(probabilistic)
    assert found != reciprocal(cosine), "the example must tell them apart"
    assert pairs["fern_to_moss"]["mean_reciprocal_rank"] == reciprocal(probabilistic.T)
    for name, side in (("moss", moss), ("fern", fern)):
        cosine = heather.embedding.double() @ side.embedding.double().T
        assert pairs[f"heather_to_{name}"]["mean_reciprocal_rank"] == reciprocal(cosine)
