"""The location encoders against scipy and pyproj, and coordinates as users have them."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from geobind_plugin_location.config import LocationConfig
from geobind_plugin_location.encoders import FourierEncoder, HarmonicsEncoder
from geobind_plugin_location.equal_earth import HALF_EQUATOR, equal_earth
from geobind_plugin_location.harmonics import SphericalHarmonics
from geobind_plugin_location.location import Location
from pydantic import ValidationError
from pyproj import Proj
from scipy.special import sph_harm_y
from scipy.stats import kstest
from torch import nn

from geobind_core import DataError
from geobind_core.testing import Check, modality_checks

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL: dict[str, dict[str, Any]] = {
    "spherical_harmonics": {"legendre_polys": 6, "width": 16, "embed_dim": 8},
    "random_fourier": {"sigmas": [1, 16], "frequencies": 12, "width": 16, "depth": 2, "embed_dim": 8},
}
SPECIAL = [(0, 90), (77, -90), (-180, 0), (179.999999, 12), (0, 0), (90, 89.9999), (-90, -89.9999)]


def location(encoder: str = "spherical_harmonics", **settings: Any) -> Location:
    return Location(LocationConfig.model_validate({"encoder": encoder, **settings}))


def places(count: int = 300) -> torch.Tensor:
    """Places all over the Earth, and special ones: `[N, 2]` degrees, with 64 bits."""
    rng = np.random.default_rng(0)
    return torch.from_numpy(np.array([*(location().draw(rng) for _ in range(count)), *SPECIAL]))


def embed(encoder: nn.Module, cells: list[Any]) -> torch.Tensor:
    modality, rng = location(), np.random.default_rng(0)
    batch = modality.collate([modality.transform(modality.read(cell), train=False, rng=rng) for cell in cells])
    assert batch.shape == (len(cells), 2)
    assert batch.dtype == torch.float32
    with torch.no_grad():
        embedding: torch.Tensor = encoder.eval()(batch)
    return embedding


@pytest.fixture(params=list(SMALL))
def small(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(3)
    return location(request.param, **SMALL[request.param]).build_encoder()


def published(encoder: str) -> nn.Module:
    torch.manual_seed(3)
    return location(encoder, **({"legendre_polys": 40} if encoder == "spherical_harmonics" else {})).build_encoder()


# ---------------------------------------------------------------------- against scipy and pyproj


@pytest.mark.parametrize("degrees", [1, 2, 10, 40])
def test_harmonics_are_those_of_scipy(degrees: int) -> None:
    points = places()
    azimuth, polar = np.radians(points[:, 0].numpy()), np.radians(90 - points[:, 1].numpy())
    expected = []
    for degree in range(degrees):
        for order in range(-degree, degree + 1):
            # The real form, without the sign of Condon and Shortley that scipy's has.
            wave = sph_harm_y(degree, abs(order), polar, azimuth) * (-1.0) ** order
            scale = 1 if order == 0 else 2**0.5
            expected.append(scale * (wave.imag if order < 0 else wave.real))
    found = SphericalHarmonics(degrees)(points)
    assert found.shape == (len(points), degrees**2)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), np.stack(expected, axis=1), atol=3e-7)


def test_the_map_is_that_of_pyproj() -> None:
    points = places()
    x, y = Proj("+proj=eqearth +R=1")(points[:, 0].numpy(), points[:, 1].numpy())
    found = equal_earth(points).numpy() * HALF_EQUATOR
    np.testing.assert_allclose(found[:, 0], x, atol=1e-12)
    np.testing.assert_allclose(found[:, 1], y, atol=1e-12)
    assert equal_earth(torch.tensor([[-180.0, 0.0]]))[0, 0] == pytest.approx(-1)


# ---------------------------------------------------------------------- the networks


def test_sizes_are_those_that_were_published() -> None:
    def layers(network: nn.Module) -> list[tuple[int, int]]:
        return [(m.in_features, m.out_features) for m in network.modules() if isinstance(m, nn.Linear)]

    harmonics, fourier = published("spherical_harmonics"), published("random_fourier")
    assert layers(harmonics) == [(1600, 512), (512, 512), (512, 256)]
    assert isinstance(fourier, FourierEncoder)
    assert len(fourier.scales) == 3
    assert layers(fourier.scales[0]) == [(512, 1024), (1024, 1024), (1024, 1024), (1024, 512)]
    assert (harmonics.embed_dim, fourier.embed_dim) == (256, 512)


def test_initial_sines_are_those_of_siren() -> None:
    encoder = published("spherical_harmonics")
    assert isinstance(encoder, HarmonicsEncoder)
    first, second = (layer for layer in encoder.network if hasattr(layer, "frequency"))
    assert (first.frequency, second.frequency) == (30, 1)
    for layer, bound in ((first, 1 / 1600), (second, (6 / 512) ** 0.5)):
        assert 0.99 * bound < layer.linear.weight.abs().max() <= bound
    inputs = torch.randn(4, 1600)
    torch.testing.assert_close(first(inputs), torch.sin(30 * (inputs @ first.linear.weight.T + first.linear.bias)))


def test_waves_are_fixed_and_kept() -> None:
    def waves(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        encoder = location("random_fourier").build_encoder()
        assert not any("waves" in name for name, _ in encoder.named_parameters())
        return {name: value for name, value in encoder.state_dict().items() if "waves" in name}

    first, second = waves(1), waves(2)
    spread = [float(value.std()) / sigma for value, sigma in zip(first.values(), (1, 16, 256), strict=True)]
    assert spread == pytest.approx([1, 1, 1], abs=0.1)
    assert len({float(value[0, 0]) for value in first.values()}) == 3
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_fourier_features_are_summed_over_scales() -> None:
    encoder, points = published("random_fourier").eval(), places(5).float()
    assert isinstance(encoder, FourierEncoder)
    flat = equal_earth(points)
    total = torch.zeros(len(points), 512)
    for scale in encoder.scales:
        angles = (2 * torch.pi * flat @ scale[0].waves.double().T).float()
        total += scale[1:](torch.cat([angles.cos(), angles.sin()], dim=1))
    torch.testing.assert_close(encoder(points), total, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "check",
    [check for encoder, settings in SMALL.items() for check in modality_checks(location(encoder, **settings))],
    ids=str,
)
def test_conformance(check: Check) -> None:
    check.run()


def test_gradients_are_finite_everywhere(small: nn.Module) -> None:
    points = torch.tensor(SPECIAL, requires_grad=True)
    small(points).square().sum().backward()
    for tensor in (points, *small.parameters()):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()
        assert tensor.grad.abs().sum() > 0


@pytest.mark.parametrize("encoder", SMALL)
def test_32_bits_of_coordinates_are_enough(encoder: str) -> None:
    """For the finest of the published encoders, before and after they are rounded."""
    network, points = published(encoder).eval(), places()
    with torch.no_grad():
        exact, rounded, elsewhere = network(points), network(points.float()), network(points + 0.5)
    cosine = torch.nn.functional.cosine_similarity(exact, rounded)
    assert cosine.min() > 0.9999
    assert torch.nn.functional.cosine_similarity(exact, elsewhere).mean() < 0.999, "the example must tell places apart"


def test_harmonics_keep_their_precision_in_half_precision() -> None:
    network, points = published("spherical_harmonics").eval(), places().float()
    with torch.no_grad():
        exact = network(points)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = network(points)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact)


# ---------------------------------------------------------------------- seams


@pytest.mark.parametrize("same", [
    [(180, 12), (-180, 12), (180.0, 12.0)],
    [(0, 90), (123, 90), (-180, 90), (360, 90)],
    [(7, -90), (-99, -90)],
    [(-10, 40), (350, 40), "350, 40", [350.0, 40.0], np.array([-10, 40]), ("-10", "40")],
    [(0, 3), (360, 3)],
])  # fmt: skip
def test_a_place_has_one_embedding(small: nn.Module, same: list[Any]) -> None:
    found = embed(small, [*same, (44, 44)])
    assert (found[:-1] == found[0]).all()
    assert (found[-1] - found[0]).abs().max() > 1e-3


@pytest.mark.parametrize(("first", "second"), [((179.9999, 50), (-179.9999, 50)), ((10, 89.9999), (-170, 89.9999))])
def test_harmonics_have_no_seam(first: tuple[float, float], second: tuple[float, float]) -> None:
    found = embed(published("spherical_harmonics"), [first, second, (first[0] - 60, 50)])
    assert (found[0] - found[1]).abs().max() < 1e-3 * (found[0] - found[2]).abs().max()


# ---------------------------------------------------------------------- cells


@pytest.mark.parametrize(("cell", "said"), [
    ((0, 91), "longitude 0, latitude 91 is no place on Earth"),
    ((139.7, -100), "no place"),
    ((47.4, 139.7), "Longitude comes first"),
    ((361, 0), "no place"),
    ((-181, 0), "no place"),
    ((float("nan"), 0), "no place"),
    ((0, float("nan")), "no place"),
    ((float("inf"), 0), "no place"),
    ((None, 3), "expected a longitude and a latitude"),
    ((1, 2, 3), "expected a longitude and a latitude"),
    (8.5, "expected a longitude and a latitude"),
    ("8.5", "expected a longitude and a latitude"),
    ("north, south", "expected a longitude and a latitude"),
    (b"\x08\x2f", "expected a longitude and a latitude"),
    (None, "expected a longitude and a latitude"),
])  # fmt: skip
def test_what_is_no_place_is_refused(cell: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        location().read(cell)


def test_places_are_drawn_uniformly_on_the_sphere() -> None:
    def draw(seed: int) -> np.ndarray[Any, Any]:
        rng = np.random.default_rng(seed)
        return np.array([location().draw(rng) for _ in range(2000)])

    found = draw(4)
    assert kstest(np.sin(np.radians(found[:, 1])), "uniform", (-1, 2)).pvalue > 0.01
    assert kstest(found[:, 0], "uniform", (-180, 360)).pvalue > 0.01
    assert (draw(4) == found).all()
    assert (draw(5) != found).all()


def test_places_can_be_looked_at() -> None:
    assert location().inspect((350, -12.5)) == {"longitude": -10.0, "latitude": -12.5}
    shown = location().preview((350, -12.5))
    assert (shown.media_type, shown.data.decode()) == ("text/plain", "12.50000° S, 10.00000° W")


def test_it_goes_to_workers() -> None:
    modality = location("random_fourier", sigmas=[1], width=8)
    assert pickle.loads(pickle.dumps(modality)).config == modality.config


# ---------------------------------------------------------------------- settings


@pytest.mark.parametrize(("settings", "said"), [
    ({"encoder": "sphere"}, "spherical_harmonics"),
    ({"legendre_polys": 0}, "greater than or equal to 1"),
    ({"encoder": "random_fourier", "legendre_polys": 10}, "a setting of `encoder: spherical_harmonics`"),
    ({"sigmas": [1]}, "a setting of `encoder: random_fourier`"),
    ({"frequencies": 16}, "a setting of `encoder: random_fourier`"),
    ({"encoder": "random_fourier", "sigmas": [1, 0]}, "expected numbers above 0"),
    ({"encoder": "random_fourier", "sigmas": []}, "at least 1"),
    ({"dropout": 1}, "less than 1"),
    ({"pretrained": "satclip"}, "`pretrained` is not supported"),
])  # fmt: skip
def test_settings_that_cannot_be(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        LocationConfig.model_validate(settings)


@pytest.mark.parametrize("encoder", SMALL)
def test_dropout_is_for_training(encoder: str) -> None:
    network, points = location(encoder, **SMALL[encoder], dropout=0.5).build_encoder(), places(4).float()
    assert not torch.equal(network(points), network(points))
    network.eval()
    assert torch.equal(network(points), network(points))
