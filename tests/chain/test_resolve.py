"""From a chain file to a chain; what is wrong is said with line, path, what was found, what would be right."""

import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from geobind_core import Loss, LossConfig, hookimpl
from geobind_core.chain import builtin
from geobind_core.chain.builtin import plugin_manager
from geobind_core.chain.model import Chain
from geobind_core.chain.resolve import load_chain
from geobind_core.errors import EXIT_INPUT, CombinedError, ConfigError, GeoBindError, InputError
from geobind_core.plugins.manager import PluginManager

CHAIN = """\
name: demo
binding: satellite
modalities:
  satellite: {model: geobind-tiny}
  ground_image: {model: geobind-tiny, pretrained: openai}
  text: {model: geobind-tiny}
  audio:
    model: geobind-tiny
    sample_rate: 16000
data:
  earth:
    source: table
    path: earth.csv
    fields: {satellite: tile, ground_image: photo, audio: sound, text: caption}
  archive:
    source: soundingearth
    root: archive
stages:
  - name: satellite
    train: satellite
    anchor: ground_image
    data: earth
    loss: {name: infonce, direction: train_to_anchor}
    optimizer: {name: adamw, lr: 5e-5}
    scheduler: {name: cosine_warmup, warmup: 1, unit: epoch}
    augment: {satellite: flips}
  - name: audio
    train: audio
    data: earth
    epochs: 3
evaluate: {gallery: 100}
"""
NAMES = "audio, ground_image, satellite, text"
INSTALLED = "audio, environment, ground_image, location, satellite, text"
STAGE_KEYS = (
    "anchor, anchor_cache, anchor_views, augment, batch_norm, batch_size, checkpoint, data, epochs, freeze_trunk, "
    "kind, loss, max_bad_samples, micro_batch_size, name, optimizer, pairs, scheduler, train"
)


class HingeConfig(LossConfig):
    margin: float = 1.0


class Hinge(Loss[HingeConfig]):
    name = "hinge"
    Config = HingeConfig


@hookimpl
def geobind_register_losses() -> list[type[Loss[Any]]]:
    return [Hinge]


@pytest.fixture(scope="module")
def plugins() -> PluginManager:
    """What is installed, and this module as one more plugin."""
    return PluginManager(builtin=[builtin, sys.modules[__name__]])


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugins: PluginManager):
    """Loads a text as `stages.yaml` of the current folder."""
    monkeypatch.chdir(tmp_path)

    def load(text: str, *assignments: str) -> Chain:
        path = Path("stages.yaml")
        path.write_text(dedent(text), encoding="utf-8")
        return load_chain(path, plugins, assignments)

    return load


def changed(old: str, new: str) -> str:
    assert CHAIN.count(old) == 1, old
    return CHAIN.replace(old, new)


def errors_of(load, text: str, *assignments: str) -> list[GeoBindError]:
    with pytest.raises(InputError) as caught:
        load(text, *assignments)
    assert caught.value.exit_code == EXIT_INPUT
    return list(caught.value.errors) if isinstance(caught.value, CombinedError) else [caught.value]


def line_of(text: str, marker: str) -> int:
    (line,) = [number for number, line in enumerate(text.splitlines(), start=1) if marker in line]
    return line


def test_house_example(load) -> None:
    text = """\
        binding: satellite
        modalities:
          satellite: {model: geobind-tiny}
          audio: {model: geobind-tiny}
          text: {model: geobind-tiny}
        data:
          earth: {source: table, path: earth.csv}
        stages:
          - name: satellite
            train: [satellite, text]
            anchor: []
            data: earth
          - name: audio
            train: adio
            data: earth
        """
    (error,) = errors_of(load, text)
    assert str(error) == (
        "stages.yaml:14 stages[1].train: no modality 'adio'. Available: audio, satellite, text. Did you mean 'audio'?"
    )


def test_the_chain_that_is_spoilt_below_is_valid(load) -> None:
    assert load(CHAIN).name == "demo"


# What is replaced, by what, words of the line at fault, path, message.
ONE_MISTAKE = {
    "misspelled key at the top": (
        "evaluate: {", "evalute: {", "evalute", "evalute",
        "unknown key 'evalute'. Available: binding, channels_last, compile, data, embed_dim, evaluate, "
        "identical_files, loader, log_with, mixed_precision, modalities, name, plugins, seed, split_distance_km, "
        "stages, strict_splits. Did you mean 'evaluate'?",
    ),
    "misspelled key in a stage": (
        "epochs: 3", "epoch: 3", "epoch: 3", "stages[1].epoch",
        f"unknown key 'epoch'. Available: {STAGE_KEYS}. Did you mean 'epochs'?",
    ),
    "misspelled key in the optimizer": (
        "lr: 5e-5", "betsa: [0.9, 0.98]", "betsa", "stages[0].optimizer.betsa",
        "unknown key 'betsa'. Available: betas, clip_norm, eps, lr, name, weight_decay. Did you mean 'betas'?",
    ),
    "misspelled key in the scheduler": (
        "warmup: 1", "warmpu: 1", "warmpu", "stages[0].scheduler.warmpu",
        "unknown key 'warmpu'. Available: min_lr, name, unit, warmup. Did you mean 'warmup'?",
    ),
    "misspelled key in the loss": (
        "direction: train", "directoin: train", "directoin", "stages[0].loss.directoin",
        "unknown key 'directoin'. Available: direction, logit_scale, name, queue, random_negatives, same_label. "
        "Did you mean 'direction'?",
    ),
    "misspelled key in the loss's own settings": (
        "direction: train_to_anchor", "logit_scale: {learnabel: false}", "learnabel",
        "stages[0].loss.logit_scale.learnabel",
        "unknown key 'learnabel'. Available: init_temperature, learnable, max, min. Did you mean 'learnable'?",
    ),
    "misspelled key in a modality's own settings": (
        "    sample_rate: 16000", "    sample_rat: 16000", "sample_rat:", "modalities.audio.sample_rat",
        "unknown key 'sample_rat'. Available: features, init_from, model, plugin, pretrained, projection, sample_rate, "
        "seconds. Did you mean 'sample_rate'?",
    ),
    "misspelled key in a modality's inner settings": (
        "    sample_rate: 16000", "    features: {min_hs: 3}", "min_hs", "modalities.audio.features.min_hs",
        "unknown key 'min_hs'. Available: fft_window, hop_length, max_hz, mel_scale, min_hz. Did you mean 'min_hz'?",
    ),
    "misspelled key in a data set": (
        "path: earth.csv", "paht: earth.csv\n    path: earth.csv", "paht", "data.earth.paht",
        "unknown key 'paht'. Available: citation, decimal, delimiter, encoding, fields, homepage, key, labels, "
        "latitude, license, longitude, path, root, source, split. Did you mean 'path'?",
    ),
    "misspelled key in a split": (
        "path: earth.csv", "path: earth.csv\n    split: {by: hash, tset: 0.2}", "tset", "data.earth.split.tset",
        "unknown key 'tset'. Available: block_km, buffer_km, by, column, seed, test, validation. Did you mean 'test'?",
    ),
    "misspelled key in evaluate": (
        "gallery: 100", "galery: 100", "galery", "evaluate.galery",
        "unknown key 'galery'. Available: batch_size, bootstrap, compose, data, gallery, maps, max_bad_samples, "
        "metrics, recall_at, split, zero_shot. Did you mean 'gallery'?",
    ),
    "unknown modality in train, of several": (
        "train: audio", "train: [audio, texts]", "texts", "stages[1].train[1]",
        f"no modality 'texts'. Available: {NAMES}. Did you mean 'text'?",
    ),
    "unknown modality in anchor": (
        "anchor: ground_image", "anchor: ground_images", "ground_images", "stages[0].anchor",
        f"no modality 'ground_images'. Available: {NAMES}. Did you mean 'ground_image'?",
    ),
    "unknown modality in pairs": (
        "epochs: 3", "pairs:\n      - [audio, satellite]\n      - [audio, txt]", "txt", "stages[1].pairs[1]",
        f"no modality 'txt'. Available: {NAMES}. Did you mean 'text'?",
    ),
    "unknown modality in pairs beside a list of anchors": (
        "epochs: 3", "anchor: satellite\n    pairs:\n      - [audio, satelite]", "satelite", "stages[1].pairs[0]",
        f"no modality 'satelite'. Available: {NAMES}. Did you mean 'satellite'?",
    ),
    "unknown modality in binding": (
        "binding: satellite", "binding: satelite", "satelite", "binding",
        f"no modality 'satelite'. Available: {NAMES}. Did you mean 'satellite'?",
    ),
    "unknown modality in fields": (
        "audio: sound", "adio: x, audio: sound", "adio", "data.earth.fields.adio",
        f"no modality 'adio'. Available: {NAMES}. Did you mean 'audio'?",
    ),
    "unknown modality in labels": (
        "path: earth.csv", "path: earth.csv\n    labels: {txt: caption}", "txt", "data.earth.labels.txt",
        f"no modality 'txt'. Available: {NAMES}. Did you mean 'text'?",
    ),
    "unknown modality in augment": (
        "satellite: flips", "satelite: flips", "satelite", "stages[0].augment.satelite",
        "'satelite' is not in this stage. Available: ground_image, satellite. Did you mean 'satellite'?",
    ),
    "unknown modality in init_from": (
        "    sample_rate: 16000", "    init_from: txt", "init_from", "modalities.audio.init_from",
        f"no modality 'txt'. Available: {NAMES}. Did you mean 'text'?",
    ),
    "unknown augmentation": (
        "satellite: flips", "satellite: flip", "flip}", "stages[0].augment.satellite",
        "no augmentation 'flip' for 'satellite'. Available: dihedral, flips, randaugment, random_resized_crop. "
        "Did you mean 'flips'?",
    ),
    "augmentation that is no name": (
        "satellite: flips", "satellite: [flips, 'randaugment(three)']", "three", "stages[0].augment.satellite",
        "found 'randaugment(three)'; the arguments of an augmentation are numbers.",
    ),
    "unknown plugin": (
        "text: {model: geobind-tiny}", "text: {plugin: txt}", "txt", "modalities.text.plugin",
        f"no modality 'txt'. Available: {INSTALLED}. Did you mean 'text'?",
    ),
    "modality that no plugin provides": (
        "  text: {model: geobind-tiny}", "  text: {model: geobind-tiny}\n  audios: {}", "audios", "modalities.audios",
        f"no modality 'audios'. Available: {INSTALLED}. Did you mean 'audio'?",
    ),
    "unknown source": (
        "source: table", "source: tabel", "tabel", "data.earth.source",
        "no source 'tabel'. Available: huggingface, soundingearth, synthetic_earth, table, webdataset. "
        "Did you mean 'table'?",
    ),
    "missing source": (
        "    source: table\n", "", "earth:", "data.earth.source",
        "'source' is required: the registered name of a kind of data set. "
        "Available: huggingface, soundingearth, synthetic_earth, table, webdataset.",
    ),
    "unknown loss": (
        "name: infonce", "name: infoncee", "infoncee", "stages[0].loss.name",
        "no loss 'infoncee'. Available: hinge, infonce, sigmoid. Did you mean 'infonce'?",
    ),
    "unknown kind": (
        "epochs: 3", "kind: aling", "aling", "stages[1].kind",
        "no stage kind 'aling'. Available: align. Did you mean 'align'?",
    ),
    "unknown scheduler": (
        "name: cosine_warmup, warmup: 1, unit: epoch", "name: cosine_warmups", "warmups", "stages[0].scheduler.name",
        "found 'cosine_warmups'. Available: constant, cosine_warm_restarts, cosine_warmup. "
        "Did you mean 'cosine_warmup'?",
    ),
    "scheduler without a name": (
        "name: cosine_warmup, warmup: 1, unit: epoch", "warmup: 1", "scheduler:", "stages[0].scheduler.name",
        "'name' is required. Available: constant, cosine_warm_restarts, cosine_warmup.",
    ),
    "unknown optimizer": (
        "name: adamw", "name: adam", "name: adam,", "stages[0].optimizer.name",
        "found 'adam'; expected 'adamw'. Did you mean 'adamw'?",
    ),
    "unknown data set": (
        "    data: earth\n    epochs", "    data: earht\n    epochs", "earht", "stages[1].data",
        "no data set 'earht'. Available: archive, earth. Did you mean 'earth'?",
    ),
    "unknown metric": (
        "gallery: 100", "metrics: [median_kn]", "median_kn", "evaluate.metrics[0]",
        "no metric 'median_kn'. Available: median_km, within_km. Did you mean 'median_km'?",
    ),
    "unknown setting of a metric": (
        "gallery: 100", "metrics: [{name: median_km, furlongs: 8}]", "furlongs", "evaluate.metrics[0].furlongs",
        "unknown key 'furlongs'. Available: name.",
    ),
    "metric given twice": (
        "gallery: 100", "metrics: [median_km, {name: median_km}]", "median_km", "evaluate.metrics[1]",
        "metric 'median_km' is given twice.",
    ),
    "metric without a name": (
        "gallery: 100", "metrics: [{furlongs: 8}]", "furlongs", "evaluate.metrics[0]",
        "'name' is required: the registered name of a metric.",
    ),
    "metric of the wrong type": (
        "gallery: 100", "metrics: [3]", "metrics", "evaluate.metrics[0]", "found 3; expected a mapping.",
    ),
    "unknown onlooker": (
        "evaluate: {", "plugins: [audoi]\nevaluate: {", "audoi", "plugins[0]",
        "no plugin 'audoi'. Available: audio, environment, ground_image, location, satellite, synthetic_earth, text. "
        "Did you mean 'audio'?",
    ),
    "unknown data set to evaluate on": (
        "gallery: 100", "data: [earth, earht]", "earht", "evaluate.data[1]",
        "no data set 'earht'. Available: archive, earth. Did you mean 'earth'?",
    ),
    "data set without a field": (
        "    data: earth\n    loss", "    data: archive\n    loss", "data: archive", "stages[0].data",
        "data set 'archive' has no field for 'ground_image'. Available: audio, satellite, text.",
    ),
    "duplicate stage": (
        "- name: audio", "- name: satellite", None, "stages[1].name",
        "stage 'satellite' is given twice; the first is stages[0].",
    ),
    "name that is no name": (
        "- name: audio", "- name: my audio", "my audio", "stages[1].name",
        "found 'my audio'; expected a name: letters, digits, _ and -, a letter first "
        "(Unique name; the stage's folder is named after it).",
    ),
    "duplicate key": (
        "epochs: 3", "epochs: 3\n    epochs: 4", "epochs: 4", "stages[1].epochs",
        "'epochs' is given twice; the first stands on line 30.",
    ),
    "anchor that is never trained and has no weights": (
        "epochs: 3", "anchor: text", "anchor: text", "stages[1].anchor",
        "anchor 'text' has no weights: no earlier stage trains it, and it has no `pretrained`.",
    ),
    "anchor that is trained too late": (
        "anchor: ground_image", "anchor: audio", "anchor: audio", "stages[0].anchor",
        "anchor 'audio' has no weights: no earlier stage trains it, and it has no `pretrained`.",
    ),
    "anchor that starts from what has no weights": (
        "  ground_image: {model: geobind-tiny, pretrained: openai}",
        "  ground_image: {model: geobind-tiny, init_from: text}",
        "anchor: ground_image", "stages[0].anchor",
        "anchor 'ground_image' has no weights: no earlier stage trains it, and it has no `pretrained`.",
    ),
    "binding modality without an anchor": (
        "    anchor: ground_image\n", "", "train: satellite", "stages[0].train",
        "'satellite' is the binding modality and there is no anchor to train 'satellite' towards.",
    ),
    "no anchor at all": (
        "epochs: 3", "anchor: []", "anchor: []", "stages[1].anchor",
        "there is no anchor to train 'audio' towards.",
    ),
    "pretrained and init_from": (
        "  ground_image: {model: geobind-tiny, pretrained: openai}",
        "  ground_image: {model: geobind-tiny, pretrained: openai, init_from: text}",
        "init_from", "modalities.ground_image",
        "`pretrained` and `init_from` exclude each other; a network starts from one of them.",
    ),
    "start from itself": (
        "  text: {model: geobind-tiny}", "  text: {model: geobind-tiny, init_from: text}", "init_from",
        "modalities.text.init_from",
        "'text' starts from itself.",
    ),
    "direction of the anchor, for two trained": (
        "train: audio", "train: [audio, text]\n    anchor: []\n    loss: {direction: anchor_to_train}",
        "anchor_to_train", "stages[1].loss.direction",
        "found 'anchor_to_train' for a pair of two trained modalities; "
        "expected first_to_second, second_to_first or both.",
    ),
    "direction in a pair, for two trained": (
        "train: audio",
        "train: [audio, text]\n    pairs:\n      - [audio, satellite]\n"
        "      - {modalities: [audio, text], loss: {direction: train_to_anchor}}",
        "train_to_anchor}}", "stages[1].pairs[1].loss.direction",
        "found 'train_to_anchor' for a pair of two trained modalities; "
        "expected first_to_second, second_to_first or both.",
    ),
    "unknown direction": (
        "direction: train_to_anchor", "direction: train_to_ancor", "ancor", "stages[0].loss.direction",
        "found 'train_to_ancor'; expected 'train_to_anchor', 'anchor_to_train', 'first_to_second', 'second_to_first' "
        "or 'both'. Did you mean 'train_to_anchor'?",
    ),
    "pair of a modality with itself": (
        "epochs: 3", "pairs:\n      - [audio, satellite]\n      - [audio, audio]",
        "[audio, audio]", "stages[1].pairs[1]",
        "'audio' is paired with itself.",
    ),
    "pair of two anchors": (
        "epochs: 3", "pairs:\n      - [audio, satellite]\n      - [ground_image, satellite]",
        "[ground_image, satellite]", "stages[1].pairs[1]",
        "neither 'ground_image' nor 'satellite' is trained in this stage.",
    ),
    "pair with what is not in the stage": (
        "epochs: 3", "anchor: satellite\n    pairs:\n      - [audio, satellite]\n      - [audio, text]",
        "[audio, text]", "stages[1].pairs[1]",
        "'text' is neither trained nor anchor here. Available: audio, satellite.",
    ),
    "anchor in no pair": (
        "epochs: 3", "anchor: [satellite, ground_image]\n    pairs:\n      - [audio, satellite]",
        "pairs:", "stages[1].pairs",
        "'ground_image' is in no pair of this stage.",
    ),
    "pair of one": (
        "epochs: 3", "pairs:\n      - [audio]", "- [audio]", "stages[1].pairs[0]",
        "found ['audio']; expected more values (first, second).",
    ),
    "trained and anchor": (
        "epochs: 3", "anchor: audio", "name: audio", "stages[1]",
        "audio cannot be both trained and anchor.",
    ),
    "trained twice": (
        "train: audio", "train: [audio, audio]", "name: audio", "stages[1]",
        "train names audio twice.",
    ),
    "nothing trained": (
        "train: audio", "train: []", "train: []", "stages[1].train",
        "found []; list should have at least 1 item after validation, not 0 (The modalities to train).",
    ),
    "train missing": (
        "    train: audio\n", "", "name: audio", "stages[1].train",
        "'train' is required (The modalities to train).",
    ),
    "micro batch larger than the batch": (
        "epochs: 3", "batch_size: 8\n    micro_batch_size: 16", "name: audio", "stages[1]",
        "micro_batch_size 16 is larger than batch_size 8.",
    ),
    "word for a number": (
        "epochs: 3", "epochs: many", "epochs:", "stages[1].epochs",
        "found 'many'; expected a valid integer, unable to parse string as an integer (Passes over the training rows).",
    ),
    "yes for a number": (
        "epochs: 3", "epochs: yes", "epochs:", "stages[1].epochs",
        "found 'yes'; expected a valid integer, unable to parse string as an integer (Passes over the training rows).",
    ),
    "fraction for a whole number": (
        "epochs: 3", "epochs: 2.5", "epochs:", "stages[1].epochs",
        "found 2.5; expected a valid integer, got a number with a fractional part (Passes over the training rows).",
    ),
    "number out of bounds": (
        "epochs: 3", "epochs: 0", "epochs:", "stages[1].epochs",
        "found 0; expected a number greater than or equal to 1 (Passes over the training rows).",
    ),
    "infinite number": (
        "lr: 5e-5", "lr: .inf", ".inf", "stages[0].optimizer.lr",
        "found inf; expected a finite number (Learning rate at its highest).",
    ),
    "number in a nested list": (
        "lr: 5e-5", "betas: [0.9, x]", "betas", "stages[0].optimizer.betas[1]",
        "found 'x'; expected a valid number, unable to parse string as a number.",
    ),
    "beta out of bounds": (
        "lr: 5e-5", "betas: [0.9, 1.5]", "betas", "stages[0].optimizer.betas[1]",
        "found 1.5; expected a number less than 1.",
    ),
    "number for a name": (
        "- name: audio", "- name: 3", "name: 3", "stages[1].name",
        "found 3; expected a valid string (Unique name; the stage's folder is named after it).",
    ),
    "nothing where something is": (
        "epochs: 3", "epochs:", "epochs:", "stages[1].epochs",
        "found nothing; expected a valid integer (Passes over the training rows).",
    ),
    "word for a mapping": (
        "optimizer: {name: adamw, lr: 5e-5}", "optimizer: adamw", "optimizer:", "stages[0].optimizer",
        "found 'adamw'; expected a mapping, such as {name: adamw}.",
    ),
    "word for a loss": (
        "loss: {name: infonce, direction: train_to_anchor}", "loss: infonce", "loss:", "stages[0].loss",
        "found 'infonce'; expected a mapping (A loss and its settings, such as {name: infonce, direction: both}).",
    ),
    "word for a modality": (
        "  text: {model: geobind-tiny}", "  text: clip", "text: clip", "modalities.text",
        "found 'clip'; expected a mapping.",
    ),
    "word for a stage": (
        "evaluate: {", "  - again\nevaluate: {", "again", "stages[2]",
        "found 'again'; expected a mapping.",
    ),
    "list for a section": (
        "evaluate: {gallery: 100}", "evaluate: [100]", "evaluate:", "evaluate",
        "found [100]; expected a mapping.",
    ),
    "projection that is none of them": (
        "    sample_rate: 16000", "    projection: linaer", "linaer", "modalities.audio.projection",
        "found 'linaer'; expected 'auto', 'none' or 'linear'. Did you mean 'linear'?",
    ),
    "split without its column": (
        "path: earth.csv", "path: earth.csv\n    split: {by: column}", "split:", "data.earth.split",
        "by: column needs `column`, the name of the column that holds the split.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ONE_MISTAKE)
def test_one_mistake_gives_one_error(load, case: str) -> None:
    old, new, marker, path, message = ONE_MISTAKE[case]
    text = changed(old, new)
    (error,) = errors_of(load, text)
    assert isinstance(error, ConfigError)
    if marker is not None:
        assert error.place == f"stages.yaml:{line_of(text, marker)} {path}"
    assert error.message == message


def test_all_mistakes_of_a_file_are_shown_in_its_order(load) -> None:
    text = (
        CHAIN.replace("binding: satellite", "binding: sattelite")
        .replace("    sample_rate: 16000", "    sample_rat: 16000")
        .replace("source: table", "source: tabel")
        .replace("anchor: ground_image", "anchor: ground_imge")
        .replace("lr: 5e-5", "lr: fast")
        .replace("epochs: 3", "epochs: 3\n    epochs: 0\n    loss: {name: infonc}")
        .replace("gallery", "galery")
    )
    with pytest.raises(CombinedError) as caught:
        load(text)
    assert [error.place for error in caught.value.errors] == [
        "stages.yaml:2 binding",
        "stages.yaml:9 modalities.audio.sample_rat",
        "stages.yaml:12 data.earth.source",
        # The anchor of a stage whose settings are not valid is not looked at.
        "stages.yaml:24 stages[0].optimizer.lr",
        "stages.yaml:31 stages[1].epochs",
        "stages.yaml:31 stages[1].epochs",
        "stages.yaml:33 evaluate.galery",
    ]
    assert str(caught.value).count("\n") >= 6
    assert all(str(error) in str(caught.value) for error in caught.value.errors)


def test_mistakes_within_one_stage_are_shown_together(load) -> None:
    text = changed("lr: 5e-5", "lr: 0, rl: 1").replace("{satellite: flips}", "{satellite: flips}\n    epoch: 3")
    assert [error.place for error in errors_of(load, text)] == [
        "stages.yaml:24 stages[0].optimizer.lr",
        "stages.yaml:24 stages[0].optimizer.rl",
        "stages.yaml:27 stages[0].epoch",
    ]


def test_wrong_names_within_one_stage_are_shown_together(load) -> None:
    text = changed("train: audio", "train: adio").replace("epochs: 3", "anchor: [satelite, txt]\n    loss: {name: x}")
    assert [(error.place, error.message.split(".")[0]) for error in errors_of(load, text)] == [
        ("stages.yaml:28 stages[1].train", "no modality 'adio'"),
        ("stages.yaml:30 stages[1].anchor[0]", "no modality 'satelite'"),
        ("stages.yaml:30 stages[1].anchor[1]", "no modality 'txt'"),
        ("stages.yaml:31 stages[1].loss.name", "no loss 'x'"),
    ]


def test_cycle_of_starts_is_reported_for_each_of_its_members_and_ends(load) -> None:
    text = (
        CHAIN.replace("  ground_image: {model: geobind-tiny, pretrained: openai}", "  ground_image: {init_from: text}")
        .replace("  text: {model: geobind-tiny}", "  text: {init_from: ground_image}")
        .replace("    sample_rate: 16000", "    init_from: text")
    )
    found = [(error.place, error.message) for error in errors_of(load, text)]
    assert found[:2] == [
        ("stages.yaml:5 modalities.ground_image.init_from", "'ground_image' starts from itself, by way of 'text'."),
        ("stages.yaml:6 modalities.text.init_from", "'text' starts from itself, by way of 'ground_image'."),
    ]
    assert not any("audio" in message for _, message in found)


def test_an_empty_chain_says_what_belongs_into_one(load) -> None:
    assert [error.message.split(" (")[0] for error in errors_of(load, "{}")] == [
        "'binding' is required",
        "'data' is required",
        "'modalities' is required",
        "'stages' is required",
    ]


def test_empty_sections(load) -> None:
    found = errors_of(load, "binding: a\nmodalities: {}\ndata: {}\nstages: []\n")
    assert [error.place for error in found] == [
        "stages.yaml:1 binding",
        "stages.yaml:2 modalities",
        "stages.yaml:3 data",
        "stages.yaml:4 stages",
    ]


@pytest.mark.parametrize("section", ["modalities", "data", "stages"])
def test_a_section_of_the_wrong_kind_is_one_of_the_errors(load, section: str) -> None:
    start = CHAIN.index(f"{section}:\n")
    rest = CHAIN[start + 1 :]
    end = next(i for i, c in enumerate(rest) if c == "\n" and rest[i + 1 : i + 2].isalpha())
    text = CHAIN[:start] + f"{section}: 3" + rest[end:]
    found = errors_of(load, text)
    line = line_of(text, f"{section}: 3")
    expected = "list" if section == "stages" else "mapping"
    assert any(e.place == f"stages.yaml:{line} {section}" and "found 3; expected a" in e.message for e in found)
    assert any(expected in e.message for e in found)


def test_files_that_are_no_chains(tmp_path: Path, plugins: PluginManager) -> None:
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "list.yaml").write_text("- a\n")
    (tmp_path / "tabs.yaml").write_text("binding: a\nmodalities:\n\taudio: {}\n")
    places = {}
    for name in ("binary.yaml", "empty.yaml", "list.yaml", "tabs.yaml", "missing.yaml", "."):
        with pytest.raises(ConfigError) as caught:
            load_chain(tmp_path / name, plugins)
        places[name] = str(caught.value).removeprefix(str(tmp_path)).splitlines()[0]
    assert places == {
        "binary.yaml": "/binary.yaml:2: not text in UTF-8.",
        "empty.yaml": "/empty.yaml: expected a mapping with binding, modalities, data and stages, found an empty file.",
        "list.yaml": "/list.yaml: expected a mapping with binding, modalities, data and stages, found a list.",
        "tabs.yaml": "/tabs.yaml:3: not valid YAML: while scanning for the next token, "
        "found character '\\t' that cannot start any token.",
        "missing.yaml": "/missing.yaml: no such file.",
        ".": ": cannot be read: Is a directory.",
    }


class TestAssignments:
    def test_change_the_chain(self, load) -> None:
        chain = load(CHAIN, "stages.audio.epochs=7", "seed=3", "modalities.text.projection=linear")
        assert (chain.stages[1].config.epochs, chain.config.seed) == (7, 3)
        assert chain.modalities["text"].modality.config.projection == "linear"

    @pytest.mark.parametrize(
        ("assignment", "message"),
        [
            ("stages.audio.epochs=x", "found 'x'; expected a valid integer"),
            ("stages.satellite.scheduler.warmup=x", "found 'x'; expected a valid number"),
            ("evalute.gallery=3", "unknown key 'evalute'."),
            ("stages.audio.optimizer={name: adamw, rl: 3}", "unknown key 'rl'."),
            ("stages.audio.train=adio", "no modality 'adio'."),
            ("stages.audio.loss.direction=sideways", "found 'sideways'; expected 'train_to_anchor'"),
            ("data.earth.source=tabel", "no source 'tabel'."),
        ],
    )
    def test_a_mistake_is_placed_at_the_assignment(self, load, assignment: str, message: str) -> None:
        (error,) = errors_of(load, CHAIN, assignment)
        assert error.place == f"--set {assignment}"
        assert error.message.startswith(message)

    def test_a_mistake_may_be_mended(self, load) -> None:
        assert load(changed("epochs: 3", "epochs: 0"), "stages.audio.epochs=1").stages[1].config.epochs == 1


class TestDefaults:
    def test_names(self, load) -> None:
        assert load(CHAIN).name == "demo"
        assert load(changed("name: demo\n", "")).name == "stages"

    def test_anchor_is_the_binding_modality(self, load) -> None:
        chain = load(CHAIN)
        assert chain.stages[0].config.anchor == ["ground_image"]
        assert chain.stages[1].config.anchor == ["satellite"]
        assert (chain.stages[1].trains(), chain.stages[1].uses()) == (("audio",), ("satellite",))

    def test_each_trained_is_paired_with_each_anchor(self, load) -> None:
        chain = load(changed("train: audio", "train: [audio, text]\n    anchor: [satellite, ground_image]"))
        assert chain.stages[1].pairs() == (
            ("audio", "satellite"),
            ("audio", "ground_image"),
            ("text", "satellite"),
            ("text", "ground_image"),
        )

    def test_without_anchors_the_trained_are_paired_with_each_other(self, load) -> None:
        chain = load(changed("train: audio", "train: [audio, text, satellite]\n    anchor: []"))
        assert chain.stages[1].pairs() == (("audio", "text"), ("audio", "satellite"), ("text", "satellite"))
        assert {pair.loss["direction"] for pair in chain.stages[1].config.pairs} == {"both"}

    def test_a_stage_that_trains_the_binding_modality_with_others_needs_no_anchor(self, load) -> None:
        chain = load(changed("train: audio", "train: [audio, satellite]"))
        assert chain.stages[1].config.anchor == []
        assert chain.stages[1].pairs() == (("audio", "satellite"),)

    def test_anchors_follow_from_pairs(self, load) -> None:
        chain = load(
            changed("train: audio", "train: [audio, text]\n    pairs: [[audio, satellite], [ground_image, text]]")
        )
        assert chain.stages[1].config.anchor == ["satellite", "ground_image"]
        assert chain.stages[1].pairs() == (("audio", "satellite"), ("ground_image", "text"))

    @pytest.mark.parametrize(
        ("direction", "pair", "resolved"),
        [
            ("train_to_anchor", "[audio, satellite]", "first_to_second"),
            ("train_to_anchor", "[satellite, audio]", "second_to_first"),
            ("anchor_to_train", "[audio, satellite]", "second_to_first"),
            ("anchor_to_train", "[satellite, audio]", "first_to_second"),
            ("first_to_second", "[satellite, audio]", "first_to_second"),
            ("second_to_first", "[audio, satellite]", "second_to_first"),
            ("both", "[satellite, audio]", "both"),
        ],
    )
    def test_direction(self, load, direction: str, pair: str, resolved: str) -> None:
        chain = load(changed("epochs: 3", f"pairs: [{pair}]\n    loss: {{direction: {direction}}}"))
        (only,) = chain.stages[1].config.pairs
        assert only.loss["direction"] == resolved

    def test_settings_of_a_pair_go_before_those_of_the_stage(self, load) -> None:
        chain = load(
            changed(
                "epochs: 3",
                "anchor: [satellite, ground_image]\n"
                "    loss: {direction: train_to_anchor, same_label: ignore}\n"
                "    pairs:\n"
                "      - [audio, satellite]\n"
                "      - {modalities: [audio, ground_image], weight: 3, loss: {direction: both}}",
            )
        )
        first, second = chain.stages[1].config.pairs
        assert (first.weight, first.loss["direction"], first.loss["same_label"]) == (1, "first_to_second", "ignore")
        assert (second.weight, second.loss["direction"], second.loss["same_label"]) == (3, "both", "ignore")
        assert first.loss["name"] == "infonce"
        assert first.loss["logit_scale"] == {"init_temperature": 0.07, "learnable": True, "min": 1.0, "max": 100.0}

    def test_a_pair_with_another_loss_takes_nothing_from_that_of_the_stage(self, load) -> None:
        chain = load(
            changed(
                "epochs: 3",
                "anchor: [satellite, ground_image]\n"
                "    loss: {direction: train_to_anchor, same_label: ignore}\n"
                "    pairs: [[audio, satellite], {modalities: [audio, ground_image], loss: {name: hinge, margin: 2}}]",
            )
        )
        first, second = chain.stages[1].config.pairs
        assert (first.loss["name"], first.loss["same_label"]) == ("infonce", "ignore")
        assert (second.loss["name"], second.loss["margin"], second.loss["direction"]) == ("hinge", 2, "both")

    def test_a_modality_without_settings(self, load) -> None:
        chain = load(changed("  text: {model: geobind-tiny}", "  text:"))
        assert chain.modalities["text"].modality.config.model == "ViT-B-32"

    def test_one_plugin_under_another_name(self, load) -> None:
        text = changed("  text: {model: geobind-tiny}", "  text: {}\n  caption: {plugin: text, model: geobind-tiny}")
        chain = load(text.replace("text: caption", "text: caption, caption: other"))
        assert chain.modalities["caption"].provided.name == "text"
        assert chain.modalities["caption"].modality.config.model == "geobind-tiny"

    def test_numbers_as_people_write_them(self, load) -> None:
        chain = load(changed("epochs: 3", "epochs: 3.0\n    batch_size: '16'\n    optimizer: {lr: 1E-3, eps: 1.e-8}"))
        config = chain.stages[1].config
        assert (config.epochs, config.batch_size, config.optimizer.lr, config.optimizer.eps) == (3, 16, 1e-3, 1e-8)
        assert chain.stages[0].config.optimizer.lr == 5e-5
        assert isinstance(chain.stages[0].config.optimizer.lr, float)

    def test_mixed_precision_may_be_no(self, load) -> None:
        assert load(CHAIN + "mixed_precision: no\n").config.mixed_precision == "no"


class TestWeights:
    def test_anchor_with_weights_of_what_it_starts_from(self, load) -> None:
        text = changed("  text: {model: geobind-tiny}", "  text: {model: geobind-tiny, init_from: ground_image}")
        assert load(text.replace("epochs: 3", "anchor: text")).stages[1].config.anchor == ["text"]

    def test_anchor_that_starts_from_what_an_earlier_stage_trained(self, load) -> None:
        text = changed("  text: {model: geobind-tiny}", "  text: {model: geobind-tiny, init_from: satellite}")
        assert load(text.replace("epochs: 3", "anchor: text")).stages[1].config.anchor == ["text"]

    def test_local_weights_are_relative_to_the_chain_file(self, load, tmp_path: Path) -> None:
        (tmp_path / "weights").mkdir()
        text = changed("    sample_rate: 16000", "    pretrained: weights")
        assert load(text).modalities["audio"].modality.config.pretrained == str(tmp_path / "weights")

    @pytest.mark.parametrize("pretrained", ["openai", "''", "~nobody-here/weights", "x" * 300, "laion/clap"])
    def test_names_of_weights_are_left_as_they_are(self, load, pretrained: str) -> None:
        chain = load(changed("    sample_rate: 16000", f"    pretrained: {pretrained}"))
        assert chain.modalities["audio"].modality.config.pretrained == pretrained.strip("'")


class TestReportedOnce:
    """What only follows from a mistake is not worth a line."""

    def test_a_modality_that_is_not_valid_is_known_all_the_same(self, load) -> None:
        for wrong in ("clip", "{modle: x}", "3"):
            (error,) = errors_of(load, changed("  text: {model: geobind-tiny}", f"  text: {wrong}"))
            assert "modalities.text" in error.place

    def test_a_data_set_that_is_not_valid_is_known_all_the_same(self, load) -> None:
        text = changed("    source: soundingearth\n    root: archive\n", "").replace("  archive:", "  archive: 3")
        (error,) = errors_of(load, text.replace("    data: earth\n    epochs", "    data: archive\n    epochs"))
        assert error.place == "stages.yaml:15 data.archive"

    def test_a_stage_that_is_not_valid_counts_as_training(self, load) -> None:
        (error,) = errors_of(load, changed("lr: 5e-5", "lr: 0"))
        assert error.place == "stages.yaml:24 stages[0].optimizer.lr"

    def test_a_wrong_loss_of_many_pairs(self, load) -> None:
        text = changed("epochs: 3", "pairs: [[audio, satellite], [satellite, audio]]\n    loss: {name: x}")
        (error,) = errors_of(load, text)
        assert error.place == "stages.yaml:31 stages[1].loss.name"


def test_the_chain_of_the_design(load) -> None:
    chain = load(
        """\
        binding: satellite               # default anchor of every stage that names none
        embed_dim: 512                   # optional; taken from the first anchor when left out

        modalities:                      # name -> plugin config; `plugin` defaults to the name
          ground_image: {model: ViT-B-32, pretrained: openai}
          text:         {model: ViT-B-32, pretrained: openai}
          satellite:    {model: ViT-B-32, init_from: ground_image}
          audio:        {pretrained: laion/clap-htsat-unfused, sample_rate: 48000, seconds: 10}

        data:
          sat2cap:       {source: table, path: "data/sat2cap.parquet",
                          fields: {satellite: overhead.jpg, ground_image: groundlevel.jpg}}
          soundingearth: {source: soundingearth, root: data/SoundingEarth}

        stages:
          - name: satellite
            train: satellite
            anchor: ground_image
            data: sat2cap
            loss: {name: infonce, direction: train_to_anchor}     # the paper's eq. 1
            batch_size: 1024
            micro_batch_size: 256
            epochs: 10
            optimizer: {name: adamw, lr: 5.0e-5, betas: [0.99, 0.98]}
            scheduler: {name: cosine_warm_restarts, t0: 3000, unit: step}
            augment: {satellite: randaugment(3)}
          - name: audio
            train: audio                 # anchor: satellite, by default
            data: soundingearth
            loss: {name: infonce, direction: both}                # eqs. 2-4

        evaluate:
          gallery: 10000
          recall_at: [1, 5, 10, 100]
        """
    )
    first, second = (stage.config for stage in chain.stages)
    assert (first.anchor, second.anchor) == (["ground_image"], ["satellite"])
    assert (first.pairs[0].loss["direction"], second.pairs[0].loss["direction"]) == ("first_to_second", "both")
    assert (first.optimizer.lr, first.optimizer.betas) == (5e-5, (0.99, 0.98))
    assert (first.scheduler.name, first.scheduler.t0, first.scheduler.unit) == ("cosine_warm_restarts", 3000, "step")
    assert (first.batch_size, first.micro_batch_size, first.augment) == (1024, 256, {"satellite": ["randaugment(3)"]})
    assert (chain.config.embed_dim, chain.config.evaluate.recall_at) == (512, [1, 5, 10, 100])
    assert chain.modalities["audio"].modality.config.pretrained == "laion/clap-htsat-unfused"
    assert chain.sources["soundingearth"].config.root == "data/SoundingEarth"


def test_only_the_plugins_that_a_chain_names_are_loaded(load, plugins: PluginManager) -> None:
    # Those of this process may have been loaded by other tests: a manager of its own knows its own.
    fresh = plugin_manager()
    path = Path("stages.yaml")
    path.write_text(
        "binding: audio\n"
        "modalities: {audio: {model: geobind-tiny}}\n"
        "data: {earth: {source: table, path: a.csv}}\n"
        "stages: [{name: a, train: audio, data: earth, anchor: audio}]\n"
    )
    with pytest.raises(InputError, match="cannot be both trained and anchor"):
        load_chain(path, fresh)
    status = {record.distribution: record.status for record in fresh.records}
    assert status["geobind-plugin-audio"] == "loaded"
    assert status["geobind-plugin-imagery"] == "available"


def test_views_without_augmentation_are_refused(load) -> None:
    with pytest.raises(
        ConfigError, match=r"stages\[0\]\.anchor_views: nothing that this stage keeps frozen is augmented"
    ):
        load(CHAIN.replace("    data: earth\n", "    data: earth\n    anchor_views: 4\n", 1))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("freeze_trunk: text", r"freeze_trunk names text; expected some of train"),
        ("anchor_cache: 'off'\n    anchor_views: 2", r"anchor_cache: off excludes them"),
        ("loss: {name: sigmoid, direction: train_to_anchor}", r"direction"),
    ],
)
def test_what_excludes_each_other(load, line: str, message: str) -> None:
    chain = CHAIN.replace("    loss: {name: infonce, direction: train_to_anchor}\n", "") if "loss" in line else CHAIN
    with pytest.raises(ConfigError, match=message):
        load(chain.replace("    data: earth\n", f"    data: earth\n    {line}\n", 1))
