"""Spaces of real networks to export: any modalities of the plugins, with random weights, saved as a run saves them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from geobind_plugin_audio.audio import Audio
from geobind_plugin_environment.environment import Environment
from geobind_plugin_imagery.images import GroundImage, Satellite
from geobind_plugin_imagery.text import Text
from geobind_plugin_location.location import Location

from geobind_core import Modality, Space
from geobind_core.plugins.manager import PluginManager
from geobind_core.space.encoder import SpaceEncoder, content_hash
from geobind_core.space.lineage import ModalityRecord, SpaceRecord
from geobind_core.space.space import assemble, save_encoder

SaveSpace = Callable[..., Space]
PLUGINS = {cls.name: cls for cls in (Satellite, GroundImage, Text, Audio, Location, Environment)}


@pytest.fixture(scope="session")
def save_space(tmp_path_factory: pytest.TempPathFactory) -> SaveSpace:
    """Returns what saves a space and loads it: `save_space(24, satellite={"model": …}, text={…})`.

    The settings are those of `stages.yaml`. A modality of another dimension gets a linear projection.
    """
    manager = PluginManager()

    def save(embed_dim: int, **settings: dict[str, Any]) -> Space:
        folder = tmp_path_factory.mktemp("space")
        records, weights = {}, {}
        for number, (name, config) in enumerate(settings.items()):
            plugin = config.get("plugin", name)
            modality: Modality[Any] = PLUGINS[plugin](PLUGINS[plugin].Config(**config))
            torch.manual_seed(number)
            network = modality.build_encoder()
            raw_dim = int(network.embed_dim)  # type: ignore[arg-type]
            encoder = SpaceEncoder(network, raw_dim, embed_dim, projected=raw_dim != embed_dim)
            with torch.no_grad():  # of batch normalisation and biases, which start at 0 and 1
                for tensor in encoder.parameters():
                    tensor.add_(0.05 * torch.randn_like(tensor))
            encoder.freeze()
            provided = manager.find("modality", plugin)
            records[name] = ModalityRecord(
                plugin=plugin,
                distribution=provided.distribution,
                version=provided.version,
                config=modality.rebuild_config(network).model_dump(mode="json"),
                raw_dim=raw_dim,
                projected=encoder.projection is not None,
                content_hash=content_hash(encoder),
            )
            weights[name] = folder / "weights" / name
            save_encoder(encoder, records[name], weights[name])
        record = SpaceRecord(embed_dim=embed_dim, binding=next(iter(settings)), modalities=records, pairs=[])
        assemble(folder / "space", record, weights)
        return Space.load(folder / "space", plugins=manager)

    return save
