"""`--set PATH=VALUE`."""

from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from geobind_core.config.document import Document, parse
from geobind_core.config.overrides import apply
from geobind_core.errors import ConfigError

CHAIN = dedent("""\
    binding: satellite
    modalities:
      audio: &sound {seconds: 10}
      bats: *sound
      text:
    stages:
      - name: satellite
        epochs: 10
      - {name: audio, epochs: 10, optimizer: {lr: 1.0}, augment: [flips, dihedral]}
      - [nameless]
    """)


@pytest.fixture
def document(tmp_path: Path) -> Document:
    path = tmp_path / "stages.yaml"
    path.write_text(CHAIN)
    return parse(path)


def value(document: Document, *path: str | int) -> Any:
    found = document.data
    for step in path:
        found = found[step]
    return found


@pytest.mark.parametrize(
    ("assignment", "path", "expected"),
    [
        ("binding=audio", ("binding",), "audio"),
        ("seed=3", ("seed",), 3),
        ("stages.audio.epochs=3", ("stages", 1, "epochs"), 3),
        ("stages.1.epochs=3", ("stages", 1, "epochs"), 3),
        ("stages.satellite.epochs=4", ("stages", 0, "epochs"), 4),
        ("stages.audio.optimizer.lr=5e-5", ("stages", 1, "optimizer", "lr"), 5e-5),
        ("stages.audio.augment.1=flips", ("stages", 1, "augment", 1), "flips"),
        ("stages.audio.augment=[a, 'b c']", ("stages", 1, "augment"), ["a", "b c"]),
        ("stages.audio.scheduler={name: constant}", ("stages", 1, "scheduler"), {"name": "constant"}),
        ("stages.satellite.optimizer.lr=2", ("stages", 0, "optimizer", "lr"), 2),
        ("evaluate.gallery=5", ("evaluate", "gallery"), 5),
        ("modalities.text.pretrained=openai", ("modalities", "text", "pretrained"), "openai"),
        ("modalities.text.pretrained=a=b", ("modalities", "text", "pretrained"), "a=b"),
        ("mixed_precision=no", ("mixed_precision",), "no"),
        ("stages.audio.epochs=", ("stages", 1, "epochs"), None),
        (" stages.audio.epochs = 3", ("stages", 1, "epochs"), 3),
    ],
)
def test_one_value_changes(document: Document, assignment: str, path: tuple[str | int, ...], expected: object) -> None:
    apply(document, assignment)
    assert value(document, *path) == expected
    assert document.locate(path) == f"--set {assignment}"


def test_nothing_else_changes(document: Document) -> None:
    apply(document, "stages.audio.optimizer.lr=2")
    unchanged = parse(document.path)
    value(document, "stages", 1, "optimizer").pop("lr")
    value(unchanged, "stages", 1, "optimizer").pop("lr")
    assert document.data == unchanged.data
    assert document.locate(("stages", 1, "epochs")) == f"{document.path}:9 stages[1].epochs"


def test_an_alias_does_not_carry_the_change_over(document: Document) -> None:
    apply(document, "modalities.audio.seconds=3")
    assert value(document, "modalities") == {"audio": {"seconds": 3}, "bats": {"seconds": 10}, "text": None}


def test_the_last_assignment_stands(document: Document) -> None:
    apply(document, "stages.audio.epochs=3")
    apply(document, "stages.audio.epochs=4")
    assert value(document, "stages", 1, "epochs") == 4
    assert document.locate(("stages", 1, "epochs")) == "--set stages.audio.epochs=4"


def test_a_section_that_an_assignment_makes_is_its_own_doing(document: Document) -> None:
    apply(document, "evalute.gallery=5")
    assert document.locate(("evalute",)) == "--set evalute.gallery=5"


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("stages.audio.epochs", "expected PATH=VALUE."),
        ("", "expected PATH=VALUE."),
        ("=3", "expected PATH=VALUE."),
        ("stages.adio.epochs=3", "no element 'adio'. Available: audio, satellite. Did you mean 'audio'?"),
        ("stages.7.epochs=3", "no element '7'. Available: audio, satellite."),
        ("stages.².epochs=3", "no element '²'. Available: audio, satellite."),
        ("stages.audio.augment.2=x", "no element '2'. Available: none."),
        ("binding.x=3", "'x': there is a plain value here, not a mapping or list."),
        ("stages.audio.epochs.x.y=3", "'x': there is a plain value here, not a mapping or list."),
        ("stages.audio.epochs=[1", "the value is not valid YAML: "),
        ("seed=!!int x", "the value is not valid YAML: "),
    ],
)
def test_a_bad_assignment_is_named(document: Document, assignment: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply(document, assignment)
    assert caught.value.place == f"--set {assignment}"
    assert caught.value.message.startswith(message)


def test_names_that_are_no_names_are_no_trouble(tmp_path: Path) -> None:
    path = tmp_path / "stages.yaml"
    path.write_text("stages:\n  - name: [a]\n  - name: b\n")
    document = parse(path)
    apply(document, "stages.b.epochs=1")
    assert value(document, "stages", 1, "epochs") == 1
