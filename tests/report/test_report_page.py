"""The page of a real run: nothing from outside, nothing unescaped, everything that there is to say."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from tests.report.conftest import ATTACK, QUERIES, Run

VOID = {"meta", "link", "img", "input", "br", "wbr", "hr", "source"}
MOST_BYTES = 6 * 2**20


class Nesting(HTMLParser):
    """Reads a page as strictly as XML would be read: every element is closed, and in its turn."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.problems: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if len(dict(attrs)) < len(attrs):
            self.problems.append(f"{tag} has an attribute twice, {self.getpos()}")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> closes nothing, {self.getpos()}")

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)


def read(page: str) -> Nesting:
    parser = Nesting()
    parser.feed(page)
    parser.close()
    return parser


@pytest.fixture(scope="module")
def parsed(run: Run) -> Nesting:
    return read(run.page)


@pytest.fixture(scope="module")
def metrics(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.folder / "metrics.json").read_text())
    return found


def classes(parsed: Nesting, tag: str, name: str) -> list[dict[str, str | None]]:
    return [attrs for found, attrs in parsed.elements if found == tag and name in (attrs.get("class") or "").split()]


def test_every_element_is_closed_in_its_turn(parsed: Nesting) -> None:
    assert parsed.problems == []
    assert parsed.open == []


def test_identifiers_are_given_once_and_what_is_referred_to_is_there(parsed: Nesting) -> None:
    identifiers = [attrs["id"] for _, attrs in parsed.elements if "id" in attrs]
    assert len(identifiers) == len(set(identifiers))
    wanted = {attrs["for"] for tag, attrs in parsed.elements if tag == "label"}
    wanted |= {str(attrs["href"])[1:] for tag, attrs in parsed.elements if tag == "a"}
    wanted |= {attrs["aria-labelledby"] for _, attrs in parsed.elements if "aria-labelledby" in attrs}
    wanted |= set(re.findall(r"url\(#([^)]+)\)", " ".join(str(attrs) for _, attrs in parsed.elements)))
    assert wanted <= set(identifiers)


def test_nothing_comes_from_outside(run: Run, parsed: Nesting) -> None:
    addresses = [
        value
        for _, attrs in parsed.elements
        for name in ("src", "href", "srcset", "data")
        if (value := attrs.get(name))
    ]
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert sum(address.startswith("data:image/jpeg") for address in addresses) > 50
    assert sum(address.startswith("data:audio/mpeg") for address in addresses) > 10
    assert re.findall(r"url\((?!#)[^)]*\)", run.page) == []
    assert "@import" not in run.page


def test_the_page_is_of_bounded_size(run: Run) -> None:
    assert len(run.page.encode()) < MOST_BYTES


def test_only_its_own_script_may_run(run: Run, parsed: Nesting) -> None:
    """The content security policy names the script by its hash: what slipped through escaping would not run."""
    policy = next(attrs["content"] for tag, attrs in parsed.elements if tag == "meta" and "http-equiv" in attrs)
    scripts = re.findall(r"<script>(.*?)</script>", run.page, flags=re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in str(policy)
    assert "default-src 'none'" in str(policy)
    assert [name for _, attrs in parsed.elements for name in attrs if name.startswith("on")] == []


def test_texts_are_texts(run: Run, parsed: Nesting) -> None:
    text = "".join(parsed.text)
    assert text.count(ATTACK) > 20
    assert ATTACK not in run.page
    assert "onerror" not in {name for _, attrs in parsed.elements for name in attrs}


def test_heat_maps_have_every_pair(parsed: Nesting, metrics: dict[str, Any]) -> None:
    cells = [attrs for tag, attrs in parsed.elements if tag == "td" and "data-pair" in attrs]
    figures = ["recall@1", "recall@5", "recall@50%", "median_rank", "mean_reciprocal_rank"]
    pairs = metrics["pairs"]
    assert sorted(c["data-pair"] or "" for c in cells) == sorted(name for name in pairs for _ in figures)
    emergent = sum(p["emergent"] for p in pairs.values())
    assert {"audio+text_to_satellite", "audio+text_to_ground_image"} <= set(pairs)
    assert len(classes(parsed, "td", "emergent")) == emergent * len(figures)
    assert len(classes(parsed, "td", "trained")) == (len(pairs) - emergent) * len(figures)
    of_pair = {c["data-pair"]: c["title"] or "" for c in cells[: len(pairs)]}
    for name, found in pairs.items():  # the first heat map is of the last recall, for there is no recall@10
        low, high = found["intervals"]["recall@50%"]
        assert f"recall@50% {found['recall@50%']:.3f}" in of_pair[name]
        assert f"{low:.3f}\N{EN DASH}{high:.3f}" in of_pair[name]
        assert f"chance {found['chance_recall@50%']:.3f}" in of_pair[name]


def test_all_figures_are_in_the_table(run: Run, metrics: dict[str, Any]) -> None:
    table = run.page[run.page.index('class="sortable"') :]
    table = table[: table.index("</table>")]
    for found in metrics["pairs"].values():
        for name in ("recall@1", "recall@5", "recall@50%", "mean_reciprocal_rank"):
            assert f">{found[name]:.3f}<" in table
        assert f">{found['median_rank']:.4g}<" in table
        assert f">{found['median_km']:,.0f}<" in table
    assert table.count("<tr>") == 1 + len(metrics["pairs"])


def test_each_pair_has_good_median_and_bad_examples(parsed: Nesting, metrics: dict[str, Any]) -> None:
    kinds = [
        kind
        for tag, attrs in parsed.elements
        if tag == "span" and (attrs.get("class") or "").startswith("kind")
        for kind in (attrs["class"] or "").split()[1:]
    ]
    assert {kind: kinds.count(kind) for kind in kinds}.keys() == {"good", "median", "bad"}
    for kind in ("good", "median", "bad"):
        assert len(metrics["pairs"]) <= kinds.count(kind) <= 2 * len(metrics["pairs"])
    # The right answer is framed in each of them.
    assert len(classes(parsed, "div", "right")) >= len(kinds)


def test_the_chain_is_drawn(parsed: Nesting) -> None:
    assert len(classes(parsed, "circle", "trained")) == 4
    assert len(classes(parsed, "rect", "frozen")) == 2
    assert len(classes(parsed, "path", "arc")) == 3
    assert len(classes(parsed, "path", "copy")) == 1, "satellite started from the weights of ground_image"
    text = "".join(parsed.text)
    assert "from clap" in text, "what audio was pretrained as"


def test_each_stage_has_its_curves_and_what_it_skipped(parsed: Nesting) -> None:
    assert len(classes(parsed, "article", "stage")) == 3
    assert len(classes(parsed, "figure", "chart")) == 3 * 4
    text = " ".join("".join(parsed.text).split())
    assert text.count("loss [nats]") == 3
    assert text.count("1 sample could not be read and was skipped") == 2
    assert "(ground_image): " in text


def test_maps_and_classification_are_there(parsed: Nesting, metrics: dict[str, Any]) -> None:
    text = "".join(parsed.text)
    assert len(classes(parsed, "figure", "map")) == len(QUERIES)
    assert all(f"“{query}”" in text for query in QUERIES)
    dots = [attrs["d"] or "" for attrs in classes(parsed, "path", "dot")]
    assert sum(path.count("M") for path in dots) == len(QUERIES) * 12, "every held-out place is on every map"
    task = metrics["zero_shot"]["colour"]
    assert f"{task['accuracy@1']:.3f}" in text
    assert len(classes(parsed, "div", "bar")) == len(task["classes"])
    assert len(classes(parsed, "table", "confusion")) == 1


def test_what_it_ran_on_and_with_is_said(run: Run, parsed: Nesting) -> None:
    text = " ".join("".join(parsed.text).split())
    record = json.loads((run.folder / "stages/03-audio/stage.json").read_text())
    assert record["environment"]["torch"] in text
    assert f"{record['environment']['device']}, 1 process, fp32" in text
    for name in ("geobind-plugin-imagery", "geobind-plugin-audio", "accelerate", "Python", "CC-BY-4.0"):
        assert name in text


def test_held_out_places_beside_training_places_are_told(parsed: Nesting, metrics: dict[str, Any]) -> None:
    assert "1 of 12 held-out places are less than 1 km from a training place" in metrics["warnings"][0]
    assert metrics["warnings"][0] in "".join(parsed.text)
