"""YAML with the line of every value."""

import math
from pathlib import Path
from textwrap import dedent

import pytest

from geobind_core.config.document import Document, parse, parse_value, readable
from geobind_core.errors import ConfigError


def document(tmp_path: Path, text: str) -> Document:
    path = tmp_path / "stages.yaml"
    path.write_text(dedent(text), encoding="utf-8")
    return parse(path)


class TestValues:
    @pytest.mark.parametrize(
        ("written", "value"),
        [
            ("5e-5", 5e-5),
            ("5.0e-5", 5e-5),
            ("1E3", 1000.0),
            ("-.5", -0.5),
            ("3.", 3.0),
            (".inf", math.inf),
            ("12", 12),
            ("-12", -12),
            ("0", 0),
            ("0x1F", 31),
            ("true", True),
            ("False", False),
            ("~", None),
            ("null", None),
            ("", None),
            # Words to people and to YAML 1.2, though not to PyYAML by itself.
            ("no", "no"),
            ("on", "on"),
            ("yes", "yes"),
            ("2020-01-01", "2020-01-01"),
            ("2020-13-45", "2020-13-45"),
            ("010", "010"),
            ("1:30", "1:30"),
            ("e5", "e5"),
            ("1.2.3", "1.2.3"),
            ("none", "none"),
            ("'5e-5'", "5e-5"),
            ('"true"', "true"),
            ("!!str 3", "3"),
        ],
    )
    def test_plain_values_are_those_of_yaml_1_2(self, written: str, value: object) -> None:
        found = parse_value(written)
        assert found == value
        assert type(found) is type(value)

    def test_not_a_number_is_a_number(self) -> None:
        assert math.isnan(parse_value(".nan"))

    def test_lists_and_mappings(self) -> None:
        assert parse_value("{a: [1, {b: x}], c: }") == {"a": [1, {"b": "x"}], "c": None}

    def test_keys_are_words_as_written(self, tmp_path: Path) -> None:
        found = document(tmp_path, "on: 1\n2: 2\n1.50: 3\ntrue: 4\n~: 5\n")
        assert found.data == {"on": 1, "2": 2, "1.50": 3, "true": 4, "~": 5}
        assert found.problems == []

    def test_byte_order_mark_and_windows_line_ends(self, tmp_path: Path) -> None:
        path = tmp_path / "stages.yaml"
        path.write_bytes(b"\xef\xbb\xbfbinding: a\r\nmodalities:\r\n  a: x\r\n")
        found = parse(path)
        assert found.data == {"binding": "a", "modalities": {"a": "x"}}
        assert found.line(("modalities", "a")) == 3


class TestLines:
    def test_every_value_has_its_line(self, tmp_path: Path) -> None:
        found = document(
            tmp_path,
            """\
            # a comment
            binding: satellite

            stages:
              - name: one
                pairs:
                  - [a, b]
                  - modalities: [c,
                                 d]
              - {name: two,
                 epochs: 3}
            """,
        )
        lines = {
            (): 2,
            ("binding",): 2,
            ("stages",): 4,
            ("stages", 0): 5,
            ("stages", 0, "name"): 5,
            ("stages", 0, "pairs"): 6,
            ("stages", 0, "pairs", 0): 7,
            ("stages", 0, "pairs", 1): 8,
            ("stages", 0, "pairs", 1, "modalities", 1): 9,
            ("stages", 1): 10,
            ("stages", 1, "epochs"): 11,
        }
        assert {path: found.lines[path] for path in lines} == lines

    def test_place_of_what_is_there(self, tmp_path: Path) -> None:
        found = document(tmp_path, "stages:\n  - name: one\n    train: x\n")
        assert found.locate(("stages", 0, "train")) == f"{found.path}:3 stages[0].train"

    def test_place_of_an_item_of_a_value_written_without_brackets(self, tmp_path: Path) -> None:
        found = document(tmp_path, "stages:\n  - name: one\n    train: x\n")
        assert found.locate(("stages", 0, "train", 0)) == f"{found.path}:3 stages[0].train"

    def test_place_of_a_key_that_is_missing(self, tmp_path: Path) -> None:
        found = document(tmp_path, "binding: x\nstages:\n  - name: one\n    train: x\n")
        assert found.locate(("stages", 0, "data")) == f"{found.path}:3 stages[0].data"
        assert found.locate(("modalities",)) == f"{found.path}:1 modalities"

    def test_place_leaves_out_what_only_pydantic_knows(self, tmp_path: Path) -> None:
        found = document(tmp_path, "scheduler:\n  name: cosine\n  t0: x\nfields:\n  audio: 3\n")
        assert found.locate(("scheduler", "cosine", "t0")) == f"{found.path}:3 scheduler.t0"
        assert found.locate(("scheduler", "cosine", "warmup")) == f"{found.path}:1 scheduler.warmup"
        assert found.locate(("fields", "audio", "list[str]")) == f"{found.path}:5 fields.audio"

    def test_place_of_what_an_assignment_changed(self, tmp_path: Path) -> None:
        found = document(tmp_path, "scheduler:\n  name: cosine\n  t0: x\n")
        found.overrides[("scheduler", "t0")] = "scheduler.t0=x"
        assert found.locate(("scheduler", "t0")) == "--set scheduler.t0=x"
        assert found.locate(("scheduler", "cosine", "t0")) == "--set scheduler.t0=x"
        assert found.locate(("scheduler", "name")) == f"{found.path}:2 scheduler.name"

    def test_readable_paths(self) -> None:
        assert readable(("stages", 1, "pairs", 0, "loss")) == "stages[1].pairs[0].loss"
        assert readable(()) == ""


class TestAliases:
    def test_an_alias_repeats_a_value_and_points_at_where_it_was_written(self, tmp_path: Path) -> None:
        found = document(tmp_path, "a: &clip\n  model: x\nb: *clip\n")
        assert found.data == {"a": {"model": "x"}, "b": {"model": "x"}}
        assert found.data["a"] is not found.data["b"]
        assert found.line(("b", "model")) == 2
        assert found.line(("b",)) == 3

    def test_what_is_written_goes_before_what_is_merged(self, tmp_path: Path) -> None:
        found = document(
            tmp_path,
            """\
            a: &a {x: 1, y: 1}
            b: &b {y: 2, z: 2}
            c:
              z: 3
              <<: [*a, *b]
            d: {<<: *b, y: 4}
            """,
        )
        assert found.data["c"] == {"x": 1, "y": 1, "z": 3}
        assert found.data["d"] == {"y": 4, "z": 2}
        assert found.line(("c", "z")) == 4
        assert found.line(("c", "x")) == 1
        assert found.problems == []

    def test_merging_what_was_merged_repeats_no_key(self, tmp_path: Path) -> None:
        found = document(
            tmp_path,
            """\
            a: &a {x: 1, y: 1}
            b: &b {<<: *a, y: 2}
            c: *b
            d: {<<: *b, y: 3}
            """,
        )
        assert found.data["c"] == {"x": 1, "y": 2}
        assert found.data["d"] == {"x": 1, "y": 3}
        assert found.problems == []

    def test_quoted_merge_key_is_an_ordinary_key(self, tmp_path: Path) -> None:
        assert document(tmp_path, 'a: {"<<": 1}\n').data == {"a": {"<<": 1}}


class TestDuplicates:
    def test_both_lines_are_named(self, tmp_path: Path) -> None:
        found = document(tmp_path, "a:\n  lr: 1\n  eps: 2\n  lr: 3\n")
        assert [(p.path, p.line, p.message) for p in found.problems] == [
            (("a", "lr"), 4, "'lr' is given twice; the first stands on line 2.")
        ]
        assert found.locate(("a", "lr"), 4) == f"{found.path}:4 a.lr"

    def test_beside_a_merge(self, tmp_path: Path) -> None:
        found = document(tmp_path, "a: &a {x: 1}\nb:\n  <<: *a\n  y: 2\n  y: 3\n")
        assert [p.line for p in found.problems] == [5]

    def test_reported_once_whatever_repeats_it(self, tmp_path: Path) -> None:
        found = document(tmp_path, "a: &a\n  x: 1\n  x: 2\nb: *a\nc: {<<: *a}\n")
        assert [(p.path, p.line) for p in found.problems] == [(("a", "x"), 3)]

    def test_keys_that_only_differ_in_quotes(self, tmp_path: Path) -> None:
        assert [p.line for p in document(tmp_path, "1: a\n'1': b\n").problems] == [2]


class TestUnreadable:
    @pytest.mark.parametrize(
        ("content", "line", "message"),
        [
            (b"a: 1\n\tb: 2\n", 2, "cannot start any token"),
            (b"a: 1\nb: [1, 2\nc: 3\n", 3, "expected ',' or ']'"),
            (b"a: 'x\nb: 1\n", 3, "unexpected end of stream"),
            (b"a: 1\nb: c: d\n", 2, "mapping values are not allowed here"),
            (b"a: 1\nb: *nothing\n", 2, "undefined alias"),
            (b"a: 1\n---\nb: 2\n", 2, "expected a single document"),
            (b"a: 1\nb: {[1, 2]: 3}\n", 2, "a key must be a word"),
            (b"a: 1\nb: {{c: 1}: 3}\n", 2, "a key must be a word"),
            (b"a: 1\nb: &b [1, *b]\n", 2, "contains itself"),
            (b"a: 1\nb: &b {c: {d: *b}}\n", 2, "contains itself"),
            (b"a: 1\nb: &b {<<: *b}\n", 2, "'<<' takes another mapping"),
            (b"a: 1\nb: {<<: 3}\n", 2, "'<<' takes another mapping"),
            (b"a: 1\nb: !!int many\n", 2, "many"),
            (b"a: 1\nb: !mine {c: 1}\n", 2, "the tag !mine is not known here"),
            (b"a: 1\nb: !!python/name:os.system\n", 2, "could not determine a constructor"),
            (b"a: 1\nb: !!python/object/apply:os.system ['true']\n", 2, "is not known here"),
            (b"a: 1\nb: x\x07y\n", 2, "the character 0x7 is not allowed"),
            (b"a: 1\n\xff\xfe\x00\n", 2, "not text in UTF-8"),
        ],
    )
    def test_line_and_reason(self, tmp_path: Path, content: bytes, line: int, message: str) -> None:
        path = tmp_path / "stages.yaml"
        path.write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            parse(path)
        assert caught.value.place == f"{path}:{line}"
        assert message in caught.value.message

    def test_tab_has_a_hint(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError) as caught:
            document(tmp_path, "a:\n\tb: 2\n")
        assert caught.value.hint == "Indent with spaces, not with tabs."

    @pytest.mark.parametrize(
        ("content", "found"),
        [
            ("", "an empty file"),
            ("# nothing\n", "an empty file"),
            ("- a\n- b\n", "a list"),
            ("satellite\n", "a plain value"),
            ("3\n", "a plain value"),
        ],
    )
    def test_not_a_mapping(self, tmp_path: Path, content: str, found: str) -> None:
        with pytest.raises(ConfigError) as caught:
            document(tmp_path, content)
        assert caught.value.message.endswith(f"found {found}.")
        assert caught.value.place == str(tmp_path / "stages.yaml")

    def test_missing_file_says_how_to_get_one(self, tmp_path: Path) -> None:
        path = tmp_path / "nowhere" / "stages.yaml"
        with pytest.raises(ConfigError) as caught:
            parse(path)
        assert str(caught.value) == f"{path}: no such file.\n  `geobind init {path}` writes the default chain."

    def test_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError) as caught:
            parse(tmp_path)
        assert str(caught.value) == f"{tmp_path}: cannot be read: Is a directory."

    def test_path_through_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(ConfigError) as caught:
            parse(tmp_path / "file" / "stages.yaml")
        assert "cannot be read: Not a directory." in str(caught.value)

    @pytest.mark.parametrize("written", ["[1, 2", "{a: 1", "a: b: c", "!!int x", "\x07"])
    def test_one_value(self, written: str) -> None:
        with pytest.raises(ValueError, match=r"."):
            parse_value(written)
