"""The page of `geobind explore` in a real browser, served by a real `geobind explore`."""

from __future__ import annotations

import base64
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.browser import Browser, Watch
from tests.explore.conftest import EVIL_KEY, EVIL_TEXT, ROWS, Server

DROP = """([name, content]) => {
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name));
  for (const type of ["dragenter", "dragover", "drop"]) {
    document.body.dispatchEvent(new DragEvent(type, { dataTransfer: transfer, bubbles: true, cancelable: true }));
  }
}"""


@pytest.fixture(scope="module")
def context(browser: Browser) -> Iterator[Any]:
    with browser.context(viewport={"width": 1200, "height": 800}) as found:
        yield found


@pytest.fixture
def page(context: Any, server: Server) -> Iterator[Any]:
    """The page, ready; in the end nothing but the server was asked for anything, and nothing went wrong."""
    found = context.new_page()
    watch = Watch(found)
    found.goto(server.address)
    found.wait_for_selector("body[data-ready]")
    until(found, lambda: found.locator("#gallery option").count() == 5)  # all are embedded
    yield found
    assert watch.origins() == {server.address.rstrip("/")}
    # The browser itself reports every answer that is an error; which of them are meant, the tests say.
    assert [problem for problem in watch.problems if "the server responded with a status of 4" not in problem] == []
    assert found.title() == "run: GeoBind explore"  # or else a caption was run as a script
    found.close()


def hits(page: Any) -> list[str]:
    return [str(text) for text in page.locator("#hits .key").all_inner_texts()]


def picture(page: Any) -> str:
    """Returns what is drawn on the map."""
    return str(page.locator("#canvas").evaluate("(canvas) => canvas.toDataURL()"))


def until(page: Any, seen: Callable[[], object]) -> None:
    """Waits. playwright's own way evaluates a text in the page, which the page does not allow to anybody."""
    for _ in range(600):
        if seen():
            return
        page.wait_for_timeout(50)
    raise AssertionError("it did not happen")


def changed(page: Any, before: Any, look: Callable[[], Any]) -> Any:
    """Returns what is seen once it is something else."""
    until(page, lambda: look() != before)
    return look()


def drop(page: Any, name: str, content: bytes) -> None:
    page.evaluate(DROP, [name, base64.b64encode(content).decode()])


def test_a_text_changes_map_and_list(page: Any) -> None:
    empty = picture(page)
    page.fill("#text", "a red place")
    page.press("#text", "Enter")
    page.wait_for_selector("#hits li")
    first, drawn = hits(page), changed(page, empty, lambda: picture(page))
    assert len(first) == 20
    assert f"{ROWS} places compared" in page.inner_text("#status")
    page.fill("#text", "grey and green, number 11")
    page.click("#go")
    changed(page, first, lambda: hits(page))
    changed(page, drawn, lambda: picture(page))
    page.select_option("#gallery", "0 text")
    page.wait_for_selector("#list-title:has-text('by text')")


def test_a_dropped_sound_is_a_query_and_can_be_weighed_against_a_text(page: Any, world: Any) -> None:
    page.fill("#text", "a red place")
    page.press("#text", "Enter")
    page.wait_for_selector("#hits li")
    by_text, drawn = hits(page), picture(page)
    drop(page, "surf.flac", (world.folder / world.rows[3]["audio"]).read_bytes())
    page.wait_for_selector("#parts li:has-text('surf.flac') small:has-text('audio')")
    by_sound = changed(page, by_text, lambda: hits(page))
    changed(page, drawn, lambda: picture(page))
    page.check("#add")
    page.fill("#text", "a red place")
    page.press("#text", "Enter")
    page.wait_for_selector("#parts li:has-text('a red place') input[type=range]")
    page.locator("#parts input[type=range]").first.evaluate(
        "(range) => { range.value = -1; for (const type of ['input', 'change']) range.dispatchEvent(new Event(type)); }"
    )
    page.wait_for_selector("#parts output:has-text('-1.0')")
    page.wait_for_selector("#status:has-text('compared')")
    assert hits(page) != by_sound
    page.click("#parts li:has-text('surf.flac') button")
    until(page, lambda: hits(page) == by_text)


def test_a_chosen_file_and_a_recording(page: Any, world: Any) -> None:
    page.set_input_files("#file", str(world.folder / world.rows[5]["audio"]))
    page.wait_for_selector("#parts li:has-text('5.flac')")
    page.wait_for_selector("#hits li")
    before = page.inner_text("#status")
    page.click("#record")  # the browser's own microphone beeps
    until(page, lambda: re.fullmatch("Stop [1-9] s", page.inner_text("#record-label")))
    page.click("#record")
    page.wait_for_selector("#parts li:has-text('recording.wav') small:has-text('audio')")
    assert page.inner_text("#status") != before
    assert page.locator("#message").is_hidden()


def test_an_image_that_two_can_read_is_asked_about(page: Any, world: Any) -> None:
    page.set_input_files("#file", str(world.folder / world.rows[5]["satellite"]))
    page.click("#message button:has-text('satellite')")
    page.wait_for_selector("#parts li:has-text('satellite_5.jpg') small:has-text('satellite')")
    page.wait_for_selector("#hits li")
    assert hits(page)[0] == "005"


def test_a_click_on_a_place_shows_it_and_what_is_expected(page: Any) -> None:
    box = page.locator("#canvas").bounding_box()
    place = page.evaluate("async () => (await fetch('api/collections/0/rows/4')).json()")
    for _ in range(6):  # so that no other place is near
        x, y = locate(page, place, box)
        page.mouse.move(x, y)
        page.mouse.wheel(0, -300)
    page.wait_for_timeout(100)
    page.mouse.click(*locate(page, place, box))
    page.wait_for_selector("#place h2:has-text('004')")
    page.wait_for_selector("#expected section")
    assert page.inner_text("#place blockquote >> nth=0").startswith("a ")
    pictures = page.locator("#place .observed img")
    until(page, lambda: pictures.evaluate_all("(all) => all.filter((one) => one.naturalWidth > 0).length") == 2)
    sections = [text.split("\n")[0] for text in page.locator("#expected section").all_inner_texts()]
    assert sections == ["ground image", "text", "audio", "location", "satellite"]
    assert page.locator("#expected audio").count() == 4
    length = page.locator("#place .observed audio").evaluate(
        """async (audio) => {
          audio.muted = true;
          await audio.play();
          await new Promise((resolve) => audio.addEventListener("timeupdate", resolve, { once: true }));
          return audio.duration;
        }"""
    )
    assert length == pytest.approx(1, abs=0.2)
    page.click("#place button:has-text('Search with this place')")
    page.wait_for_selector("#parts li:has-text('place 004')")
    page.wait_for_selector("#hits li")
    assert hits(page)[0] == "004"
    page.click("#place button[aria-label='Close this place']")
    assert page.locator("#place").is_hidden()


def pixels(page: Any, place: dict[str, float]) -> tuple[float, float]:
    """Returns where a place is on the map."""
    look = "(canvas, [longitude, latitude]) => canvas.map.toPixels(longitude, latitude)"
    x, y = page.locator("#canvas").evaluate(look, [place["longitude"], place["latitude"]])
    return float(x), float(y)


def locate(page: Any, place: dict[str, float], box: dict[str, float]) -> tuple[float, float]:
    """Returns where a place is on the page."""
    x, y = pixels(page, place)
    return box["x"] + x, box["y"] + y


def test_a_click_beside_all_places_asks_by_coordinates(page: Any) -> None:
    box = page.locator("#canvas").bounding_box()
    page.mouse.click(*locate(page, {"longitude": 0, "latitude": 88}, box))  # none is so far north
    page.wait_for_selector("#parts li:has-text('88') small:has-text('location')")
    page.wait_for_selector("#hits li")
    assert "N" in page.inner_text("#place h2")
    page.fill("#text", "-70.25, 45")
    page.press("#text", "Enter")
    page.wait_for_selector("#place h2:has-text('45.0000° N, 70.2500° W')")


def test_what_cannot_be_read_is_said_and_changes_nothing(page: Any) -> None:
    page.fill("#text", "a red place")
    page.press("#text", "Enter")
    page.wait_for_selector("#hits li")
    before = hits(page)
    drop(page, "words.wav", b"these are words")
    page.wait_for_selector("#message:has-text('cannot be read by satellite or ground_image or audio')")
    assert hits(page) == before
    assert page.locator("#parts li:has-text('words.wav')").count() == 0
    drop(page, "long.wav", b"0" * 1_200_000)
    page.wait_for_selector("#message:has-text('1.0 MiB at most')")
    page.fill("#text", "green")
    page.press("#text", "Enter")
    page.wait_for_selector("#message", state="hidden")


def test_markup_in_data_is_shown_as_text(page: Any) -> None:
    place = page.evaluate("async () => (await fetch('api/collections/0/rows/0')).json()")
    for _ in range(6):
        page.locator("#canvas").evaluate("(canvas, [x, y]) => canvas.map.zoom(1.5, x, y)", list(pixels(page, place)))
    page.check("#inview")  # so that it is among the hits
    page.fill("#text", EVIL_TEXT)
    page.press("#text", "Enter")
    page.wait_for_selector("#hits li")
    assert EVIL_KEY in hits(page)
    page.locator("#hits .open", has_text=EVIL_KEY).first.click()
    page.wait_for_selector("#place blockquote")
    assert page.inner_text("#place h2") == EVIL_KEY
    assert page.inner_text("#place blockquote >> nth=0") == EVIL_TEXT
    assert page.locator("#place script, #place b, #hits b").count() == 0


def test_keys_and_downloads(page: Any) -> None:
    page.fill("#text", "a red place")
    page.press("#text", "Enter")
    page.wait_for_selector("#hits li")
    before = picture(page)
    page.focus("#canvas")
    page.keyboard.press("+")
    zoomed = changed(page, before, lambda: picture(page))
    page.keyboard.press("ArrowLeft")
    changed(page, zoomed, lambda: picture(page))
    page.keyboard.press("Enter")
    page.wait_for_selector("#place h2")
    with page.expect_download() as download:
        page.click("#csv")
    lines = Path(download.value.path()).read_text(encoding="utf-8").splitlines()
    assert lines[0] == "key,longitude,latitude,score"
    assert len(lines) == ROWS + 1
    assert download.value.suggested_filename == "run.csv"


def test_on_a_phone_in_the_dark(server: Server, browser: Browser) -> None:
    phone = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True, "color_scheme": "dark"}
    with browser.context(**phone) as context:
        page = context.new_page()
        watch = Watch(page)
        page.goto(server.address)
        page.wait_for_selector("body[data-ready]")
        page.fill("#text", "a red place")
        page.tap("#go")
        page.wait_for_selector("#hits li")
        page.tap("#hits .open >> nth=0")
        page.wait_for_selector("#expected section")
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 27)"
        assert watch.problems == []


def test_ctrl_c_ends_it_quietly_and_only_this_machine_is_answered(server: Server) -> None:
    """The last of this file: there is no server behind it."""
    port = urlsplit(server.address).port
    assert server.address.startswith("http://127.0.0.1:")
    with pytest.raises(OSError, match="refused"), socket.create_connection(("127.0.0.2", port), timeout=5):
        pass
    with socket.create_connection(("127.0.0.1", port), timeout=5):  # open, and idle, when it ends
        time.sleep(0.2)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) == 0
    assert server.process.stderr is not None
    assert server.process.stderr.read().splitlines()[-1] == "Ctrl-C ends it"
