"""The page in a real browser, with the network off."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser import Watch
from tests.report.conftest import Run


@pytest.fixture(scope="module")
def opened(run: Run, browser: Any) -> Iterator[tuple[Any, Watch]]:
    with browser.context(viewport={"width": 1280, "height": 900}, offline=True) as context:
        context.route(lambda url: not url.startswith(("file:", "data:")), lambda route: route.abort())
        page = context.new_page()
        watch = Watch(page)
        page.on("dialog", lambda dialog: watch.problems.append(f"dialog: {dialog.message}"))
        page.goto((run.folder / "report.html").as_uri())
        yield page, watch


def tabs(page: Any, name: str) -> Iterator[None]:
    """Goes from tab to tab as somebody with a mouse does."""
    for label in page.locator(f".{name} > label").all():
        label.click()
        yield


def test_only_the_file_is_asked_for(opened: tuple[Any, Watch], run: Run) -> None:
    page, watch = opened
    page.wait_for_load_state("networkidle")
    assert {url for url in watch.requested if not url.startswith("data:")} == {(run.folder / "report.html").as_uri()}
    assert watch.problems == []


def test_every_heat_map_can_be_seen_and_has_all_its_cells(opened: tuple[Any, Watch], run: Run) -> None:
    page, watch = opened
    pairs = json.loads((run.folder / "metrics.json").read_text())["pairs"]
    seen = 0
    for _ in tabs(page, "figures"):
        cells = page.locator("#pairs td.cell:visible")
        assert cells.count() == len(pairs)
        assert all(box["width"] > 30 and box["height"] > 20 for box in (cell.bounding_box() for cell in cells.all()))
        seen += 1
    assert seen == 5
    assert watch.problems == []


def test_every_thumbnail_can_be_seen(opened: tuple[Any, Watch], run: Run) -> None:
    page, watch = opened
    pairs = json.loads((run.folder / "metrics.json").read_text())["pairs"]
    measured = "found => found.map(i => [i.complete, i.naturalWidth, i.offsetWidth, i.offsetHeight])"
    images = []
    for _ in tabs(page, "examples"):
        assert page.locator("#examples .panel:visible").count() == 1
        found = page.locator("#examples .panel:visible img").evaluate_all(measured)
        images.append(found)
        assert page.locator("#examples .panel:visible .example").count() >= 3
    assert len(images) == len(pairs)
    flat = [image for found in images for image in found] + page.locator("#maps img").evaluate_all(measured)
    assert len(flat) > 100
    assert all(complete and min(rest) > 20 for complete, *rest in flat), flat
    assert watch.problems == []


def test_a_recording_plays_and_the_next_one_stops_it(opened: tuple[Any, Watch]) -> None:
    page, watch = opened
    page.locator(".examples > label", has_text="→ audio").first.click()
    result = page.evaluate(
        """async () => {
          const [first, second] = [...document.querySelectorAll("#examples audio")].filter((a) => a.offsetParent);
          first.muted = second.muted = true;
          await first.play();
          const until = performance.now() + 5000;
          while (first.currentTime < 0.15 && performance.now() < until) await new Promise((r) => setTimeout(r, 20));
          const heard = first.currentTime;
          await second.play();
          await new Promise((r) => setTimeout(r, 50));
          return { heard, duration: first.duration, stopped: first.paused, error: first.error };
        }"""
    )
    assert result["heard"] >= 0.15
    assert 0.9 < result["duration"] < 1.2
    assert result["stopped"]
    assert result["error"] is None
    assert watch.problems == []


def test_columns_sort(opened: tuple[Any, Watch]) -> None:
    page, _ = opened
    column = page.locator("table.sortable thead th").all_inner_texts().index("recall@5")
    for order in (-1, 1):
        page.locator("table.sortable thead th button").nth(column).click()
        values = [
            float(text.split()[0])
            for text in page.locator(f"table.sortable tbody td:nth-child({column + 1})").all_inner_texts()
        ]
        assert values == sorted(values, key=lambda value: order * value)


def test_the_pointer_reads_a_curve(opened: tuple[Any, Watch]) -> None:
    page, watch = opened
    chart = page.locator(".chart svg").first
    chart.scroll_into_view_if_needed()
    at_rest = chart.locator(".readout").text_content()
    box = chart.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.5)
    assert chart.locator(".readout").text_content().startswith("step ")
    page.mouse.move(0, 0)
    assert chart.locator(".readout").text_content() == at_rest
    assert watch.problems == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_does_not_scroll_sideways(run: Run, browser: Any, scheme: str) -> None:
    with browser.context(viewport={"width": 360, "height": 740}, color_scheme=scheme, offline=True) as context:
        page = context.new_page()
        page.goto((run.folder / "report.html").as_uri())
        for _ in tabs(page, "examples"):
            assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.evaluate("getComputedStyle(document.body).colorScheme") == "light dark"
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(int(n) for n in background[4:-1].split(",")) < 120) == (scheme == "dark")


def test_it_can_be_read_without_a_script(run: Run, browser: Any) -> None:
    with browser.context(java_script_enabled=False, offline=True) as context:
        page = context.new_page()
        page.goto((run.folder / "report.html").as_uri())
        assert page.locator("#pairs td.cell:visible").count() > 10
        page.locator(".examples > label").nth(3).click()
        assert page.locator("#examples .panel:visible").count() == 1
        assert page.locator("#examples .panel:visible .example:visible").count() >= 3


def test_on_paper_all_pairs_are_shown_and_nothing_waits_to_be_played(run: Run, browser: Any) -> None:
    pairs = json.loads((run.folder / "metrics.json").read_text())["pairs"]
    with browser.context(color_scheme="dark", offline=True) as context:
        page = context.new_page()
        page.goto((run.folder / "report.html").as_uri())
        assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")
        page.emulate_media(media="print")
        assert page.locator("#examples .panel:visible").count() == len(pairs)
        assert page.locator("audio:visible").count() == 0
        assert page.locator("#examples .example:visible").count() == 3 * len(pairs)
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.evaluate("getComputedStyle(document.querySelector('td.cell')).printColorAdjust") == "exact"
