"""Vectors of numbers, with gaps: what is missing, what is usual, what is refused."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from geobind_plugin_environment.config import EnvironmentConfig
from geobind_plugin_environment.encoder import EnvironmentEncoder
from geobind_plugin_environment.environment import Environment
from pydantic import ValidationError
from torch import nn

from geobind_core import DataError
from geobind_core.testing import Check, modality_checks

pytestmark = pytest.mark.usefixtures("one_thread")

NAN, INFINITE = float("nan"), float("inf")
USUAL = {"mean": [600.0, 10.0, 0.5], "std": [500.0, 12.0, 0.3]}


def environment(**settings: Any) -> Environment:
    return Environment(EnvironmentConfig.model_validate({"variables": ["height", "warmth", "rain"], **settings}))


def batch_of(modality: Environment, cells: list[Any]) -> torch.Tensor:
    rng = np.random.default_rng(0)
    batch = modality.collate([modality.transform(modality.read(cell), train=True, rng=rng) for cell in cells])
    assert batch.dtype == torch.float32
    return batch


def encoder_of(modality: Environment) -> EnvironmentEncoder:
    torch.manual_seed(2)
    encoder = modality.build_encoder()
    assert isinstance(encoder, EnvironmentEncoder)
    return encoder.eval()


def inputs_of(encoder: EnvironmentEncoder, batch: torch.Tensor) -> torch.Tensor:
    """Returns what the first layer is given."""
    seen: list[torch.Tensor] = []
    hook = encoder.network[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    encoder(batch)
    hook.remove()
    return seen[0]


# ---------------------------------------------------------------------- numbers


@pytest.mark.parametrize("gap", [None, NAN])
def test_numbers_are_standardised_and_gaps_are_flagged(gap: float | None) -> None:
    modality = environment(**USUAL)
    batch = batch_of(modality, [[1100, -2, 0.5], [600, gap, 1.1], (gap, gap, 0.2)])
    expected = [[1, -1, 0, 0, 0, 0], [0, 0, 2, 0, 1, 0], [0, 0, -1, 1, 1, 0]]
    torch.testing.assert_close(inputs_of(encoder_of(modality), batch), torch.tensor(expected, dtype=torch.float32))


def test_without_mean_and_std_numbers_are_squashed() -> None:
    modality = environment()
    found = inputs_of(encoder_of(modality), batch_of(modality, [[3000, -2, None]]))
    expected = [np.arcsinh(3000), np.arcsinh(-2), 0, 0, 0, 1]
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-6)


def test_a_gap_is_not_the_mean() -> None:
    modality = environment(**USUAL)
    found = encoder_of(modality)(batch_of(modality, [[600, 10, 0.5], [None, 10, 0.5]]))
    assert (found[0] - found[1]).abs().max() > 1e-4


def test_gradients_are_finite_with_gaps() -> None:
    modality = environment(**USUAL)
    encoder = encoder_of(modality)
    encoder(batch_of(modality, [[None, 10, 0.5], [3, NAN, None]])).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_what_is_usual_is_kept_with_the_weights_and_not_trained() -> None:
    encoder = encoder_of(environment(**USUAL))
    assert encoder.state_dict()["mean"].tolist() == USUAL["mean"]
    assert not {"mean", "std"} & {name for name, _ in encoder.named_parameters()}


def test_the_network_is_a_residual_mlp() -> None:
    encoder = encoder_of(environment(width=16, depth=3, embed_dim=5))
    shapes = [(m.in_features, m.out_features) for m in encoder.modules() if isinstance(m, nn.Linear)]
    assert shapes == [(6, 16), *[(16, 16)] * 6, (16, 5)]
    block, inputs = encoder.network[2], torch.randn(4, 16)
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(block(inputs), inputs)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in encoder.modules())


@pytest.mark.parametrize(
    "check",
    [
        check
        for settings in ({}, USUAL, {"dropout": 0.5})
        for check in modality_checks(environment(width=16, depth=1, embed_dim=8, **settings))
    ],
    ids=str,
)
def test_conformance(check: Check) -> None:
    check.run()


# ---------------------------------------------------------------------- cells


@pytest.mark.parametrize(("cell", "said"), [
    ([1, 2], "expected 3 numbers"),
    ([1, 2, 3, 4], "expected 3 numbers"),
    ([[1, 2, 3]], "expected 3 numbers"),
    (3.5, "expected 3 numbers"),
    ([1, "wet", 3], "expected 3 numbers"),
    ("1 2 3", "expected 3 numbers"),
    (b"\x01\x02\x03", "expected 3 numbers"),
    ({"height": 1}, "expected 3 numbers"),
    ([1, INFINITE, -INFINITE], "warmth, rain: infinite"),
    ([None, NAN, None], "all variables are missing"),
    (None, "expected 3 numbers"),
])  # fmt: skip
def test_what_cannot_be_read(cell: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        environment().read(cell)


def test_a_single_variable_needs_no_list() -> None:
    modality = environment(variables=["height"])
    assert modality.read(12).tolist() == modality.read([12]).tolist() == [12]


def test_cells_can_be_looked_at() -> None:
    modality = environment()
    assert modality.inspect([1200.5, None, 0.25]) == {"height": 1200.5, "rain": 0.25, "missing": 1}
    shown = modality.preview([1200.5, None, 0.25])
    assert (shown.media_type, shown.data.decode()) == ("text/plain", "height: 1200\nrain: 0.25")


def test_it_goes_to_workers() -> None:
    modality = environment(**USUAL)
    assert pickle.loads(pickle.dumps(modality)).config == modality.config


# ---------------------------------------------------------------------- settings


@pytest.mark.parametrize(("settings", "said"), [
    ({"variables": []}, "at least 1"),
    ({"variables": ["rain", "height", "rain"]}, "a name twice"),
    ({"mean": [1, 2, 3]}, "belong together"),
    ({"std": [1, 2, 3]}, "belong together"),
    ({"mean": [1, 2], "std": [1, 2, 3]}, "`mean` has 2 numbers, `variables` has 3 names"),
    ({"mean": [1, 2, 3], "std": [1, 2, 3, 4]}, "`std` has 4 numbers"),
    ({"mean": [1, 2, 3], "std": [1, 0, 3]}, "expected numbers above 0"),
    ({"mean": [1, NAN, 3], "std": [1, 1, 3]}, "finite number"),
    ({"mean": [1, 1, 3], "std": [1, INFINITE, 3]}, "finite number"),
    ({"mean": [], "std": []}, "`mean` has 0 numbers"),
    ({"depth": -1}, "greater than or equal to 0"),
    ({"pretrained": "worldclim"}, "`pretrained` is not supported"),
])  # fmt: skip
def test_settings_that_cannot_be(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        environment(**settings)
