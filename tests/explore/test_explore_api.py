"""The server of `geobind explore`: answers, limits, and what it refuses."""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from geobind_core.chain.builtin import plugin_manager
from geobind_core.explore.collection import from_index
from geobind_core.explore.explorer import Explorer, Preparation
from geobind_core.explore.gallery import Gallery
from geobind_core.explore.opening import RunOptions, open_run, prepare
from geobind_core.explore.server import build_app
from geobind_core.index.file import EmbeddingIndex
from geobind_core.progress import Reporter
from tests.explore.conftest import EVIL_KEY, EVIL_TEXT, ROWS

pytestmark = pytest.mark.usefixtures("one_thread")
LIMIT = 200_000


@pytest.fixture(scope="module")
def client(explorer: Explorer) -> TestClient:
    return TestClient(build_app(explorer, limit=LIMIT), base_url="http://127.0.0.1:8765")


def ask(client: TestClient, *parts: dict[str, Any], files: tuple[bytes, ...] = (), **wanted: Any) -> Any:
    query = {"parts": parts, **wanted}
    if not files:
        return client.post("/api/query", json=query)
    uploads = [("files", ("../../etc/passwd", content)) for content in files]
    return client.post("/api/query", data={"query": json.dumps(query)}, files=uploads)


def scores(answer: dict[str, Any]) -> np.ndarray[Any, Any]:
    return np.frombuffer(base64.b64decode(answer["scores"]), "<f4")


def test_the_space_is_described_by_what_it_can_read(client: TestClient) -> None:
    found = client.get("/api/space").json()
    assert found["reads"] == {
        "text": ["text"], "files": ["satellite", "ground_image", "audio"], "coordinates": ["location"],
    }  # fmt: skip
    (collection,) = found["collections"]
    assert collection["rows"] == ROWS
    assert collection["shows"] == {
        "satellite": "image", "ground_image": "image", "text": "text", "audio": "audio", "location": "text",
    }  # fmt: skip
    assert collection["galleries"][0]["modality"] == "satellite"
    assert {gallery["modality"]: gallery["rows"] for gallery in collection["galleries"]}["audio"] == ROWS - 1
    assert collection["preparing"] == []


def test_a_text_is_compared_with_every_place(client: TestClient, explorer: Explorer) -> None:
    answer = ask(client, {"text": "a red place"}, k=5).json()
    paths = [explorer.collections[0].read_cell("satellite", row) for row in range(ROWS)]
    space = explorer.space
    expected = space.similarity(space.embed("text", ["a red place"]), space.embed("satellite", paths))[0].numpy()
    assert np.allclose(scores(answer), expected, atol=1e-5)
    assert [hit["row"] for hit in answer["hits"]] == np.argsort(-expected, kind="stable")[:5].tolist()
    assert answer["hits"][0]["score"] == pytest.approx(expected.max(), abs=1e-5)
    assert answer["compared"] == ROWS
    places = np.frombuffer(client.get("/api/collections/0/places").content, "<f4").reshape(-1, 2)
    hit = answer["hits"][0]
    assert places[hit["row"]] == pytest.approx([hit["longitude"], hit["latitude"]], abs=1e-4)


def test_a_file_goes_to_who_can_read_it(client: TestClient, explorer: Explorer) -> None:
    cells = explorer.collections[0].read_cell
    sound = Path(cells("audio", 3)).read_bytes()
    answer = ask(client, {"file": 0}, files=(sound,)).json()
    assert answer["parts"] == [{"modality": "audio", "weight": 1.0}]
    expected = explorer.space.embed("audio", [sound])[0].numpy()
    own = explorer.galleries[0, "satellite"].vector(7)
    assert own is not None
    assert scores(answer)[7] == pytest.approx(float(own @ expected), abs=1e-5)


def test_several_parts_are_a_weighted_sum(client: TestClient, explorer: Explorer) -> None:
    sound = Path(explorer.collections[0].read_cell("audio", 3)).read_bytes()
    answer = ask(client, {"text": "grey"}, {"file": 0, "weight": -0.5}, {"place": [0, 2]}, files=(sound,)).json()
    space, place = explorer.space, explorer.galleries[0, "satellite"].vector(2)
    assert place is not None
    total = space.embed("text", ["grey"])[0].numpy() - 0.5 * space.embed("audio", [sound])[0].numpy() + place
    expected = explorer.galleries[0, "satellite"].similarities(total / np.linalg.norm(total))
    assert np.allclose(scores(answer), expected, atol=1e-5)


def test_an_image_that_two_can_read_is_asked_about(client: TestClient, explorer: Explorer) -> None:
    image = Path(explorer.collections[0].read_cell("satellite", 3)).read_bytes()
    refused = ask(client, {"file": 0}, files=(image,))
    assert refused.status_code == 422
    assert refused.json()["choices"] == ["satellite", "ground_image"]
    answer = ask(client, {"file": 0, "modality": "satellite"}, files=(image,)).json()
    assert answer["hits"][0]["row"] == 3


def test_coordinates_and_other_galleries(client: TestClient, explorer: Explorer) -> None:
    longitude, latitude = explorer.collections[0].place(5) or (0.0, 0.0)
    answer = ask(client, {"coordinates": [longitude, latitude]}, gallery="location", k=1).json()
    assert answer["hits"][0]["row"] == 5
    without = ask(client, {"text": "a red place"}, gallery="audio").json()
    assert np.isnan(scores(without)[1])
    assert without["compared"] == ROWS - 1


def test_a_filter_keeps_the_map_but_not_the_hits(client: TestClient, explorer: Explorer) -> None:
    answer = ask(client, {"text": "a red place"}, bbox=[0, -90, 180, 90], k=200).json()
    assert all(hit["longitude"] >= 0 for hit in answer["hits"])
    assert len(answer["hits"]) == sum((explorer.collections[0].place(row) or (-1,))[0] >= 0 for row in range(ROWS))
    assert len(scores(answer)) == ROWS


def test_all_similarities_can_be_taken_away(client: TestClient) -> None:
    table = ask(client, {"text": "a red place"}, format="csv")
    assert table.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(table.text)))
    assert len(rows) == ROWS
    assert [float(row["score"]) for row in rows] == sorted((float(row["score"]) for row in rows), reverse=True)
    assert EVIL_KEY in {row["key"] for row in rows}
    features = ask(client, {"text": "a red place"}, format="geojson").json()["features"]
    assert features[0]["properties"]["score"] == float(rows[0]["score"])
    assert features[0]["geometry"]["coordinates"] == [float(rows[0][axis]) for axis in ("longitude", "latitude")]


def test_a_place_has_what_was_observed_and_what_is_expected(client: TestClient, explorer: Explorer) -> None:
    place = client.get("/api/collections/0/rows/4").json()
    assert [o["modality"] for o in place["observations"]] == [
        "satellite", "ground_image", "text", "audio", "location",
    ]  # fmt: skip
    answer = client.post("/api/expect", json={"parts": [{"place": [0, 4]}], "k": 3}).json()
    assert answer["parts"][0]["modality"] == "satellite"
    found = {gallery["modality"]: gallery for gallery in answer["expected"]}
    assert set(found) == {"satellite", "ground_image", "text", "audio", "location"}
    own = explorer.galleries[0, "satellite"].vector(4)
    assert own is not None
    sounds = explorer.galleries[0, "audio"].similarities(own)
    order = [row for row in np.argsort(-sounds, kind="stable").tolist() if not np.isnan(sounds[row])]
    assert found["audio"]["own"]["rank"] == order.index(4) + 1
    assert [item["row"] for item in found["audio"]["items"]] == [row for row in order if row != 4][:3]
    assert all(item["row"] != 4 for gallery in found.values() for item in gallery["items"])


def test_a_place_without_a_recording_still_has_expected_ones(client: TestClient) -> None:
    observed = {o["modality"] for o in client.get("/api/collections/0/rows/1").json()["observations"]}
    assert "audio" not in observed
    answer = client.post("/api/expect", json={"parts": [{"place": [0, 1]}]}).json()
    (sounds,) = (gallery for gallery in answer["expected"] if gallery["modality"] == "audio")
    assert sounds["own"] is None
    assert len(sounds["items"]) == 4


def test_media_are_what_the_modalities_show(client: TestClient) -> None:
    place = client.get("/api/collections/0/rows/4").json()
    urls = {o["modality"]: o["url"] for o in place["observations"] if "url" in o}
    image = client.get(urls["satellite"])
    assert image.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(image.content)).size == (40, 40)
    sound = client.get(urls["audio"])
    assert sound.headers["content-type"] == "audio/mpeg"
    assert sound.headers["accept-ranges"] == "bytes"
    size = len(sound.content)
    for wanted, start, end in [
        ("bytes=10-19", 10, 20),
        (f"bytes={size - 5}-", size - 5, size),
        ("bytes=-7", size - 7, size),
    ]:
        part = client.get(urls["audio"], headers={"Range": wanted})
        assert part.status_code == 206
        assert part.content == sound.content[start:end]
        assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
    beyond = client.get(urls["audio"], headers={"Range": f"bytes={size}-"})
    assert beyond.status_code == 416
    assert beyond.headers["content-range"] == f"bytes */{size}"


def test_markup_in_data_is_text(client: TestClient) -> None:
    place = client.get("/api/collections/0/rows/0").json()
    assert place["key"] == EVIL_KEY
    assert {o["modality"]: o.get("text") for o in place["observations"]}["text"] == EVIL_TEXT
    shown = client.get("/media/0/0/2")
    assert shown.text == EVIL_TEXT
    assert shown.headers["content-type"] == "text/plain; charset=utf-8"


def test_every_answer_tells_the_browser_to_be_careful(client: TestClient) -> None:
    for path in ("/", "/static/app.js", "/api/space", "/media/0/3/0", "/nowhere", "/api/collections/99/places"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize(
    "path",
    [
        "/static/..%2fserver.py", "/static/../server.py", "/static/%2e%2e/server.py", "/static//etc/passwd",
        "/static/..%5cserver.py", "/media/0/..%2f..%2fetc%2fpasswd/0", "/media/0/-1/0", "/media/-1/0/0",
        "/media/0/0/-1",
        "/media/0/99999999999999999999/0", f"/media/0/{ROWS}/0", "/media/1/0/0", "/media/0/0/99", "/media/0/0x1/0",
        "/api/collections/0/rows/-1", f"/api/collections/0/rows/{ROWS}", "/api/collections/7/places",
        "/api/collections/..%2f0/places", "/media/0/1/3", "/docs", "/openapi.json",
    ],
)  # fmt: skip
def test_no_path_leads_out(client: TestClient, path: str) -> None:
    refused = client.get(path)
    assert refused.status_code in (404, 422)
    assert refused.json()["error"]
    assert "root:" not in refused.text
    assert str(Path(__file__).parents[2]) not in refused.text


def test_a_text_is_never_a_path(client: TestClient, explorer: Explorer) -> None:
    path = str(explorer.collections[0].read_cell("satellite", 3))
    answer = ask(client, {"text": path}).json()
    assert answer["parts"] == [{"modality": "text", "weight": 1.0}]
    refused = ask(client, {"text": path, "modality": "satellite"})
    assert refused.status_code == 422
    assert "does not read text" in refused.json()["error"]


@pytest.mark.parametrize(
    ("parts", "status", "said"),
    [
        ([], 422, "parts"),
        ([{}], 422, "expected one"),
        ([{"text": "a", "file": 0}], 422, "expected one"),
        ([{"text": "  "}], 422, "empty"),
        ([{"text": "x" * 10_001}], 422, "10000"),
        ([{"text": "a", "weight": 0}], 422, "weight is 0"),
        ([{"text": "a", "weight": 1e9}], 422, "less than or equal"),
        ([{"text": "a", "path": "/etc/passwd"}], 422, "not permitted"),
        ([{"file": "/etc/passwd"}], 422, "integer"),
        ([{"file": 3}], 422, "no file 3"),
        ([{"place": [0, ROWS]}], 404, "no row"),
        ([{"place": [-1, 0]}], 422, "greater than"),
        ([{"place": ["../..", 0]}], 422, "integer"),
        ([{"text": "a", "modality": "../audio"}], 422, "does not read text"),
        ([{"coordinates": [8.5, 147.0]}], 422, "no place on Earth"),
        ([{"coordinates": [8.5, 1e300]}], 422, "less than or equal"),
        ([{"text": "a"}, {"text": "a", "weight": -1}], 422, "cancel each other"),
        ([{"text": "a"}] * 9, 422, "at most 8"),
    ],
)
def test_a_wrong_query_is_told_why(client: TestClient, parts: list[Any], status: int, said: str) -> None:
    refused = ask(client, *parts)
    assert refused.status_code == status
    assert said in refused.json()["error"]


def test_an_index_that_is_too_large_for_memory_is_read_from_the_disk(
    explorer: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = explorer.galleries[0, "audio"]
    monkeypatch.setattr("geobind_core.explore.gallery._IN_MEMORY", 0)
    streamed = Gallery(held._index, explorer.collections[0])
    query = explorer.space.embed("text", ["a red place"])[0].numpy()
    assert np.allclose(streamed.similarities(query), held.similarities(query), atol=1e-6, equal_nan=True)
    assert np.array_equal(streamed.vector(5), held.vector(5))
    assert streamed.vector(1) is None


def test_a_gallery_that_is_not_there(client: TestClient) -> None:
    refused = ask(client, {"text": "a"}, gallery="smell")
    assert refused.status_code == 422
    assert "satellite" in refused.json()["hint"]


def _svg() -> bytes:
    return b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"


@pytest.mark.parametrize(
    "content", [b"just words", _svg(), b"\x89PNG\r\n\x1a\n" + b"\0" * 50, b"RIFF\0\0\0\0WAVE", b"PK\3\4"]
)
def test_a_file_that_nobody_reads_is_refused_with_reasons(client: TestClient, content: bytes) -> None:
    refused = ask(client, {"file": 0}, files=(content,))
    assert refused.status_code == 415
    assert refused.json()["error"] == "This file cannot be read by satellite or ground_image or audio."
    assert all(f"{name}: " in refused.json()["hint"] for name in ("satellite", "ground_image", "audio"))
    assert ask(client, {"file": 0, "modality": "audio"}, files=(content,)).status_code == 415


def test_an_empty_file_is_refused(client: TestClient) -> None:
    assert ask(client, {"file": 0}, files=(b"",)).json()["error"] == "The file is empty."


def test_a_long_upload_is_refused_before_and_while_it_comes(client: TestClient) -> None:
    refused = ask(client, {"file": 0}, files=(b"0" * (LIMIT + 100_000),))
    assert refused.status_code == 413
    assert "MiB, the most" in refused.json()["error"]

    sent = 0

    def without_a_length() -> Any:
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
        for _ in range(1000):
            sent += 10_000
            yield b"0" * 10_000

    refused = client.post(
        "/api/query", content=without_a_length(), headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    assert refused.status_code == 413
    assert "MiB, the most" in refused.json()["error"]


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"Content-Type": "text/plain"}, b'{"parts": [{"text": "a"}]}'),
        ({"Content-Type": "application/x-www-form-urlencoded"}, b"query=a"),
    ],
)
def test_a_body_that_a_form_elsewhere_could_send_is_refused(
    client: TestClient, headers: dict[str, str], body: bytes
) -> None:
    assert client.post("/api/query", content=body, headers=headers).status_code == 415


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"parts": NaN}', b"\xff\xfe"])
def test_broken_json_is_refused(client: TestClient, body: bytes) -> None:
    refused = client.post("/api/query", content=body, headers={"Content-Type": "application/json"})
    assert refused.status_code == 422
    assert refused.json()["error"].startswith("The query is not valid.")


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8765",
        "127.0.0.1.evil.example",
        "10.0.0.1",
        "",
        "[",
        "a b",
        "x@127.0.0.1",
        "127.0.0.1/x",
    ],
)
def test_another_host_name_is_refused(client: TestClient, host: str) -> None:
    refused = client.get("/api/space", headers={"Host": host})
    assert refused.status_code == 403
    assert "not" in refused.json()["error"]


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "LOCALHOST:8765", "[::1]:8765"])
def test_own_host_names_are_answered(client: TestClient, host: str) -> None:
    assert client.get("/api/space", headers={"Host": host}).status_code == 200


def test_on_all_addresses_any_address_will_do_but_not_any_name(explorer: Explorer) -> None:
    open_to_all = TestClient(build_app(explorer, names=["Box.lan"], any_address=True))
    for host, status in {"10.0.0.1:80": 200, "[fe80::1]": 200, "box.lan": 200, "evil.example": 403}.items():
        assert open_to_all.get("/api/space", headers={"Host": host}).status_code == status


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:9999"},
        {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"},
    ],
)  # fmt: skip
def test_what_a_page_elsewhere_sends_is_refused(client: TestClient, headers: dict[str, str]) -> None:
    refused = client.post("/api/query", json={"parts": [{"text": "a"}]}, headers=headers)
    assert refused.status_code == 403
    assert "another server" in refused.json()["error"]


def test_own_page_may_send(client: TestClient) -> None:
    headers = {"Origin": "http://127.0.0.1:8765", "Sec-Fetch-Site": "same-origin"}
    assert client.post("/api/query", json={"parts": [{"text": "a"}]}, headers=headers).status_code == 200


def test_queries_at_once_get_the_answers_of_queries_alone(client: TestClient) -> None:
    texts = [f"place {number}" for number in range(8)]
    alone = [scores(ask(client, {"text": text}).json()) for text in texts]
    together: dict[str, Any] = {}
    threads = [
        threading.Thread(target=lambda text=text: together.update({text: scores(ask(client, {"text": text}).json())}))
        for text in texts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(together[text], before) for text, before in zip(texts, alone, strict=True))


def test_embeddings_that_are_there_are_used_again(run_folder: Path, explorer: Explorer, tmp_path: Path) -> None:
    def opened() -> Path:
        options = RunOptions(places=10, keep=tmp_path)
        found, _ = open_run(run_folder, plugin_manager(), Reporter(quiet=True), options, torch.device("cpu"))
        assert len(found.collections[0]) == 4  # those held out
        return tmp_path / "world" / "satellite.parquet"

    before = opened().stat()
    assert opened().stat().st_mtime_ns == before.st_mtime_ns
    whole = opened().read_bytes()
    opened().write_bytes(whole[:100])  # a disk that was full
    assert EmbeddingIndex.open(opened()).record.modality == "satellite"


def test_an_index_alone_can_be_explored(explorer: Explorer) -> None:
    index = explorer.galleries[0, "satellite"]._index
    alone = from_index(index, explorer.space)
    assert alone.keys == explorer.collections[0].keys
    gallery = Gallery(index, alone)
    found = Explorer("alone", explorer.space, [alone], {(0, "satellite"): gallery})
    client = TestClient(build_app(found), base_url="http://localhost")
    answer = ask(client, {"text": "a red place"}).json()
    assert np.allclose(
        scores(answer),
        scores(ask(TestClient(build_app(explorer), base_url="http://localhost"), {"text": "a red place"}).json()),
    )
    assert {o["modality"] for o in answer["hits"][0]["observations"]} >= {"satellite", "text"}
    shown = next(o["url"] for o in answer["hits"][0]["observations"] if o["modality"] == "satellite")
    assert client.get(shown).headers["content-type"] == "image/jpeg"
    nowhere = client.post("/api/query", json={"parts": [{"text": "a"}], "collection": 1})
    assert nowhere.status_code == 404


def test_what_is_nowhere_can_still_be_searched(explorer: Explorer) -> None:
    collection = dataclasses.replace(explorer.collections[0], places=None)
    nowhere = Explorer("nowhere", explorer.space, [collection], {(0, "satellite"): explorer.galleries[0, "satellite"]})
    client = TestClient(build_app(nowhere), base_url="http://localhost")
    assert client.get("/api/space").json()["collections"][0]["has_places"] is False
    assert client.get("/api/collections/0/places").status_code == 404
    answer = ask(client, {"text": "a red place"}).json()
    assert answer["hits"][0]["longitude"] is None
    assert ask(client, {"text": "a red place"}, bbox=[0, 0, 1, 1]).status_code == 422
    features = ask(client, {"text": "a red place"}, format="geojson").json()["features"]
    assert features[0]["geometry"] is None


def test_what_is_not_embedded_yet_is_said(explorer: Explorer) -> None:
    early = Explorer(
        "early", explorer.space, explorer.collections, {(0, "satellite"): explorer.galleries[0, "satellite"]}
    )
    early.preparing = {(0, "audio"): Preparation(10, 23), (0, "text"): Preparation(failed="no room on the disk")}
    client = TestClient(build_app(early), base_url="http://localhost")
    waiting = ask(client, {"text": "a red place"}, gallery="audio")
    assert waiting.status_code == 503
    assert "10 of 23" in waiting.json()["error"]
    assert ask(client, {"text": "a red place"}, gallery="text").json()["hint"] == "no room on the disk"
    assert [p["modality"] for p in client.get("/api/space").json()["collections"][0]["preparing"]] == ["audio", "text"]


def test_embedding_in_the_background_can_be_stopped_and_goes_on(run_folder: Path, tmp_path: Path) -> None:
    options = RunOptions(split="all", keep=tmp_path)
    opened, left = open_run(run_folder, plugin_manager(), Reporter(quiet=True), options, torch.device("cpu"))
    stopped = threading.Event()
    stopped.set()
    prepare(opened, left, Reporter(quiet=True), stopped)
    assert [modality for _, modality in opened.galleries] == ["satellite"]
    prepare(opened, left, Reporter(quiet=True), threading.Event())
    assert {modality for _, modality in opened.galleries} == {"satellite", "ground_image", "text", "audio", "location"}
    assert not opened.preparing
    assert not [path for path in tmp_path.rglob(".*") if path.is_dir()]
