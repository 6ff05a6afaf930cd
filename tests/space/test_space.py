"""Spaces on the disk: what is written, what is read, and what embeds."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from geobind_plugin_audio.audio import Audio
from geobind_plugin_imagery.images import GroundImage, Satellite
from geobind_plugin_imagery.text import Text
from PIL import Image

from geobind_core import DataError, Space
from geobind_core.errors import SpaceError
from geobind_core.plugins.manager import PluginManager
from geobind_core.space.encoder import SpaceEncoder, content_hash
from geobind_core.space.lineage import ModalityRecord, SpaceRecord, TrainedPair
from geobind_core.space.space import assemble, load_encoder, modality_from, save_encoder

pytestmark = pytest.mark.usefixtures("one_thread")

DIM = 24


@pytest.fixture(scope="module")
def plugins() -> PluginManager:
    return PluginManager()


@pytest.fixture(scope="module")
def encoders(clip_folder: Path, clap_folder: Path) -> dict[str, tuple[Any, SpaceEncoder]]:
    """The modalities and the networks that the space is saved from; audio has a projection."""
    modalities = {
        "satellite": Satellite(Satellite.Config(pretrained=str(clip_folder))),
        "ground_image": GroundImage(GroundImage.Config(pretrained=str(clip_folder))),
        "text": Text(Text.Config(pretrained=str(clip_folder))),
        "audio": Audio(Audio.Config(pretrained=str(clap_folder), sample_rate=16_000, seconds=1)),
    }
    torch.manual_seed(4)
    found = {}
    for name, modality in modalities.items():
        raw = 20 if name == "audio" else DIM
        encoder = SpaceEncoder(modality.build_encoder(), raw, DIM, projected=raw != DIM)
        encoder.freeze()
        found[name] = (modality, encoder)
    return found


@pytest.fixture(scope="module")
def saved(
    encoders: dict[str, tuple[Any, SpaceEncoder]], plugins: PluginManager, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run folder with a space of four modalities."""
    run = tmp_path_factory.mktemp("run")
    hashes = {name: content_hash(encoder) for name, (_, encoder) in encoders.items()}
    records, folders = {}, {}
    for name, (modality, encoder) in encoders.items():
        provided = plugins.find("modality", name)
        trained = name == "audio"
        records[name] = ModalityRecord(
            plugin=name,
            distribution=provided.distribution,
            version=provided.version,
            config=modality.rebuild_config(encoder.encoder).model_dump(mode="json"),
            raw_dim=encoder.raw_dim,
            projected=encoder.projection is not None,
            content_hash=hashes[name],
            stage="audio" if trained else None,
            aligned_to={"satellite": hashes["satellite"]} if trained else {},
        )
        folders[name] = run / "weights" / name
        save_encoder(encoder, records[name], folders[name])
    pairs = [TrainedPair(modalities=("audio", "satellite"), stage="audio")]
    record = SpaceRecord(embed_dim=DIM, binding="satellite", modalities=records, pairs=pairs)
    assemble(run / "space", record, folders)
    shutil.rmtree(run / "weights")  # a space stands alone
    return run


@pytest.fixture
def own(saved: Path, tmp_path: Path) -> Path:
    """A copy of the space for a test to break."""
    shutil.copytree(saved / "space", tmp_path / "space")
    return tmp_path / "space"


@pytest.fixture(scope="module")
def space(saved: Path) -> Space:
    return Space.load(saved)


def assert_unit(embeddings: torch.Tensor, count: int) -> None:
    assert embeddings.shape == (count, DIM)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(count), atol=1e-5, rtol=0)


# ---------------------------------------------------------------------- saved and loaded


def test_what_is_on_the_disk(saved: Path) -> None:
    files = {path.relative_to(saved / "space").as_posix() for path in (saved / "space").rglob("*") if path.is_file()}
    names = ("satellite", "ground_image", "text", "audio")
    assert files == {"space.json", *(f"{n}/{f}" for n in names for f in ("config.json", "model.safetensors"))}
    record = json.loads((saved / "space" / "space.json").read_text())
    assert record["format"] == 1
    assert (record["embed_dim"], record["binding"]) == (DIM, "satellite")
    for name in names:
        own = record["modalities"][name]
        assert own == json.loads((saved / "space" / name / "config.json").read_text())
        assert {"plugin", "distribution", "version", "config", "content_hash", "stage", "aligned_to"} <= set(own)
    assert record["modalities"]["audio"]["aligned_to"] == {
        "satellite": record["modalities"]["satellite"]["content_hash"]
    }
    assert "pretrained" not in {k for k, v in record["modalities"]["text"]["config"].items() if v is not None}


def test_nothing_is_pickled(saved: Path) -> None:
    for path in (saved / "space").rglob("*"):
        assert path.suffix not in (".bin", ".pt", ".pth", ".pkl", ".npy"), path
        if path.is_file():
            start = path.read_bytes()[:64]
            assert not start.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")), path


def test_the_networks_come_back_to_the_bit(
    space: Space, encoders: dict[str, tuple[Any, SpaceEncoder]], world: Any
) -> None:
    space.verify()
    for name, (modality, encoder) in encoders.items():
        assert content_hash(space.encoder(name)) == space.record.modalities[name].content_hash == content_hash(encoder)
        loaded = space.encoder(name)
        assert not loaded.training
        assert not any(p.requires_grad for p in loaded.parameters())
        item = world.rows[0][name if name != "text" else "text"]
        cell = item if name == "text" else world.folder / item
        sample = modality.transform(modality.read(cell), train=False, rng=np.random.default_rng(0))
        with torch.no_grad():
            expected = encoder(modality.collate([sample])).embedding
        assert torch.equal(space.embed(name, [cell]), expected), name


def test_saving_again_changes_nothing(space: Space, saved: Path, plugins: PluginManager, tmp_path: Path) -> None:
    for name, record in space.record.modalities.items():
        save_encoder(space.encoder(name), record, tmp_path / name)
        again = (tmp_path / name / "model.safetensors").read_bytes()
        assert again == (saved / "space" / name / "model.safetensors").read_bytes()
        loaded = load_encoder(modality_from(record, plugins), record, DIM, tmp_path / name)
        assert content_hash(loaded) == record.content_hash


def test_both_the_run_and_the_space_folder_load(saved: Path) -> None:
    for folder in (saved, saved / "space", str(saved)):
        found = Space.load(folder)
        assert found.modalities == ("satellite", "ground_image", "text", "audio")
        assert found.embed_dim == DIM
    assert found.record.trained_pairs() == {frozenset(("audio", "satellite")): "audio"}


def test_a_space_that_was_cut_off_while_being_replaced(own: Path) -> None:
    own.rename(own.with_name(".space.old"))
    assert Space.load(own).embed_dim == DIM


def test_only_what_is_asked_for_is_loaded(own: Path) -> None:
    for name in ("audio", "satellite", "ground_image"):
        (own / name / "model.safetensors").unlink()
    found = Space.load(own)
    assert_unit(found.embed("text", ["waves on a beach"]), 1)
    with pytest.raises(SpaceError, match="weights are missing"):
        found.embed("audio", ["x.flac"])
    with pytest.raises(SpaceError, match="weights are missing"):
        found.verify()


# ---------------------------------------------------------------------- embedding


def test_images_in_every_form(space: Space, world: Any) -> None:
    path = world.folder / world.rows[1]["satellite"]
    data = path.read_bytes()
    with Image.open(path) as picture:
        picture.load()
    array = np.asarray(picture)
    forms = [
        path,
        str(path),
        data,
        bytearray(data),
        picture,
        array,
        {"bytes": data, "path": None},
        {"bytes": None, "path": str(path)},
    ]
    found = space.embed("satellite", forms)
    assert_unit(found, len(forms))
    for row in found[1:]:
        torch.testing.assert_close(row, found[0], atol=1e-6, rtol=0)
    other = space.embed("satellite", [world.folder / world.rows[2]["satellite"]])
    assert (other - found[0]).abs().max() > 1e-4, "another image must embed elsewhere"


def test_recordings_in_every_form(space: Space, world: Any) -> None:
    path = world.folder / world.rows[1]["audio"]
    samples, rate = soundfile.read(path, dtype="float32")
    whole = np.round(samples * 32_768).astype(np.int16)
    ogg = io.BytesIO()
    soundfile.write(ogg, samples, rate, format="OGG")
    forms = [
        path,
        str(path),
        path.read_bytes(),
        (samples, rate),
        (np.stack([samples, samples], axis=1), rate),
        (whole, rate),
        {"array": samples, "sampling_rate": rate},
        {"bytes": path.read_bytes(), "path": None},
        {"bytes": None, "path": str(path)},
    ]
    found = space.embed("audio", forms)
    assert_unit(found, len(forms))
    for row in found[1:]:
        torch.testing.assert_close(row, found[0], atol=1e-4, rtol=0)
    assert_unit(space.embed("audio", [ogg.getvalue()]), 1)
    other = space.embed("audio", [world.folder / world.rows[2]["audio"]])
    assert (other - found[0]).abs().max() > 1e-3, "another recording must embed elsewhere"


def test_batches_equal_single_items(space: Space, world: Any) -> None:
    for name in ("satellite", "audio", "text"):
        items = [row[name] if name == "text" else world.folder / row[name] for row in world.rows[:7]]
        together = space.embed(name, items)
        assert_unit(together, 7)
        alone = torch.cat([space.embed(name, [item]) for item in items])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
        torch.testing.assert_close(space.embed(name, iter(items), batch_size=3), together, atol=1e-5, rtol=0)


def test_nothing_and_the_wrong_thing(space: Space, world: Any, tmp_path: Path) -> None:
    assert space.embed("text", []).shape == (0, DIM)
    for single in ("waves on a beach", b"bytes", Path("x.jpg"), {"bytes": b"", "path": None}, 7):
        with pytest.raises(TypeError, match="list of items"):
            space.embed("text", single)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size is 0"):
        space.embed("text", ["waves"], batch_size=0)
    with pytest.raises(DataError, match=r"text, item 1: .*blank"):
        space.embed("text", ["waves", "  "])
    gone = tmp_path / "gone.jpg"
    with pytest.raises(DataError, match=r"satellite, item 0: .*no such file: .*gone.jpg"):
        space.embed("satellite", [gone])
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    good = [world.folder / world.rows[1]["satellite"]] * 5
    with pytest.raises(DataError, match="satellite, item 5"):
        space.embed("satellite", [*good, tmp_path / "bad.jpg"], batch_size=2)
    with pytest.raises(DataError, match="audio, item 0"):
        space.embed("audio", [tmp_path / "bad.jpg"])


def test_arrays_are_as_good_as_tensors(space: Space) -> None:
    texts = space.embed("text", ["waves on a beach", "a busy road"])
    torch.testing.assert_close(space.similarity(texts.numpy(), texts), space.similarity(texts, texts))  # type: ignore[arg-type]
    assert f"embed_dim={DIM}" in repr(space)


def test_embeddings_are_ordinary_tensors(space: Space) -> None:
    found = space.embed("text", ["waves", "trees"])
    assert not found.is_inference()
    weights = torch.ones(DIM, requires_grad=True)
    (found * weights).sum().backward()  # a probe may be trained on them
    assert weights.grad is not None


def test_similarity(space: Space) -> None:
    a, b = space.embed("text", ["waves", "trees"]), space.embed("text", ["trees", "rocks", "waves"])
    found = space.similarity(a, b)
    assert found.shape == (2, 3)
    assert found[0].argmax() == 2
    assert found[1].argmax() == 0
    torch.testing.assert_close(found.diagonal(2), torch.ones(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(space.similarity(a * 3, b * 0.1), found, atol=1e-5, rtol=0)
    with pytest.raises(SpaceError, match="24 dimensions and the gallery 5"):
        space.similarity(a, torch.ones(2, 5))


def test_a_captions_tail_beyond_the_context_is_cut(space: Space) -> None:
    long = "waves " * 500
    assert_unit(space.embed("text", [long]), 1)


# ---------------------------------------------------------------------- damage


def test_unknown_modality(space: Space) -> None:
    with pytest.raises(SpaceError, match=r"no modality 'adio'.*Did you mean 'audio'\?"):
        space.embed("adio", ["x.flac"])


@pytest.mark.parametrize("where", [0.02, 0.5, 0.999])
def test_verify_catches_a_flipped_bit(own: Path, where: float) -> None:
    path = own / "audio" / "model.safetensors"
    content = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    content[header + int(where * (len(content) - header))] ^= 1
    path.write_bytes(content)
    found = Space.load(own)
    with pytest.raises(SpaceError, match="weights of 'audio' have hash") as raised:
        found.verify()
    assert str(path) in str(raised.value)


def test_verify_reads_the_disk(own: Path, world: Any) -> None:
    found = Space.load(own)
    found.embed("text", ["waves"])  # loaded before the damage is done
    path = own / "text" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 64
    path.write_bytes(content)
    with pytest.raises(SpaceError, match="weights of 'text' have hash"):
        found.verify()


@pytest.mark.parametrize("damage", ["truncated", "empty", "header", "pickle"])
def test_damaged_weights(own: Path, damage: str) -> None:
    path = own / "text" / "model.safetensors"
    content = path.read_bytes()
    if damage == "pickle":
        torch.save({"weight": torch.ones(2)}, path)
    else:
        path.write_bytes({"truncated": content[:-100], "empty": b"", "header": b"\xff" * 40 + content[40:]}[damage])
    with pytest.raises(SpaceError, match="damaged") as raised:
        Space.load(own).embed("text", ["waves"])
    assert str(path) in str(raised.value)


def test_weights_of_another_network(own: Path) -> None:
    shutil.copyfile(own / "text" / "model.safetensors", own / "audio" / "model.safetensors")
    with pytest.raises(SpaceError, match="do not fit the network of 'audio'") as raised:
        Space.load(own).encoder("audio")
    assert "geobind-plugin-audio" in raised.value.hint


def rewrite(folder: Path, **changes: Any) -> None:
    record = json.loads((folder / "space.json").read_text())
    (folder / "space.json").write_text(json.dumps({**record, **changes}))


def test_a_format_of_the_future(own: Path) -> None:
    rewrite(own, format=7)
    with pytest.raises(SpaceError, match="format 7; this version reads format 1") as raised:
        Space.load(own)
    assert "Install" in raised.value.hint


def test_no_space_here(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(SpaceError, match=r"no space\.json here") as raised:
            Space.load(folder)
        assert str(folder) in str(raised.value)
        assert "geobind run" in raised.value.hint


@pytest.mark.parametrize("content", ["{", '{"format": 1}', '{"format": 1, "embed_dim": 3, "binding": "x"}', "[]"])
def test_a_damaged_record(own: Path, content: str) -> None:
    (own / "space.json").write_text(content)
    with pytest.raises(SpaceError, match="damaged") as raised:
        Space.load(own)
    assert str(own / "space.json") in str(raised.value)


def test_settings_of_another_version(own: Path) -> None:
    record = json.loads((own / "space.json").read_text())
    record["modalities"]["text"]["config"]["no_such_setting"] = 1
    (own / "space.json").write_text(json.dumps(record))
    with pytest.raises(SpaceError, match="geobind-plugin-imagery does not understand settings"):
        Space.load(own).embed("text", ["waves"])
