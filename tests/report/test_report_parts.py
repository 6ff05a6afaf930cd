"""What the page is made of: charts, heat maps, maps, the budget; and runs that lack this or that."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from geobind_core.data.geography import Places
from geobind_core.plugins.modality import Preview
from geobind_core.report import charts
from geobind_core.report.lineage import Starts, lineage_graph
from geobind_core.report.matrix import heat_maps, ink_on, pairs_of
from geobind_core.report.page import Subject, write_report
from geobind_core.report.previews import Album, place_text
from geobind_core.report.score_maps import ScoredPlaces, map_view
from geobind_core.report.stages import stage_view
from geobind_core.space.lineage import SpaceRecord
from tests.report.conftest import Run
from tests.report.test_report_page import classes, read


def numbers(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path)]


class TestCharts:
    def test_a_line_is_where_its_values_are(self) -> None:
        chart = charts.line_chart("loss", "step", [10, 20, 40], {"": [4.0, 3.0, 1.0]})
        assert chart is not None
        (x0, y0), (x1, y1), (x2, y2) = numbers(chart.lines[0].path)
        assert (x0, x2) == (charts.LEFT, charts.WIDTH - charts.RIGHT)
        assert (x1 - x0) / (x2 - x0) == pytest.approx(1 / 3, abs=1e-3)
        assert (y1 - y0) / (y2 - y0) == pytest.approx(1 / 3, abs=1e-2)
        assert chart.lines[0].last == "1"
        assert all(charts.TOP <= tick.at <= charts.HEIGHT - charts.BOTTOM for tick in chart.y_ticks)

    def test_a_long_line_keeps_its_peaks(self) -> None:
        values = np.sin(np.arange(50_000) / 500)
        values[31_234] = 9.0
        chart = charts.line_chart("loss", "step", list(range(50_000)), {"": values.tolist()})
        assert chart is not None
        points = numbers(chart.lines[0].path)
        assert len(points) < 600
        highest = min(points, key=lambda point: point[1])
        share = (highest[0] - charts.LEFT) / (charts.WIDTH - charts.LEFT - charts.RIGHT)
        assert share * 49_999 == pytest.approx(31_234, abs=150)

    def test_what_is_no_number_leaves_a_gap(self) -> None:
        chart = charts.line_chart("loss", "step", [1, 2, 3, 4], {"": [1.0, math.nan, math.inf, 2.0]})
        assert chart is not None
        assert chart.lines[0].path.count("M") == 2
        assert charts.line_chart("loss", "step", [1], {"": [math.nan]}) is None
        assert charts.line_chart("loss", "step", [], {}) is None

    def test_marks_can_be_told_apart(self) -> None:
        chart = charts.line_chart("scale", "step", [10, 11, 12], {"": [14.2857, 14.2861, 14.2866]})
        assert chart is not None
        labels = [tick.label for tick in chart.y_ticks]
        assert len(labels) > 2
        assert len(set(labels)) == len(labels)
        assert [tick.label for tick in chart.x_ticks] == ["10", "11", "12"], "there is no half step"

    def test_one_point_and_a_constant_can_be_drawn(self) -> None:
        for values in ([3.0], [3.0, 3.0, 3.0], [0.0, 0.0]):
            chart = charts.line_chart("lr", "step", list(range(len(values))), {"": values}, from_zero=True)
            assert chart is not None
            assert all(math.isfinite(value) for point in numbers(chart.lines[0].path) for value in point)


def figures(recall: float, **more: Any) -> dict[str, Any]:
    return {
        "recall@10": recall,
        "median_rank": 3.0,
        "gallery": 100,
        "data": "d",
        "emergent": True,
        "trained_in": None,
    } | more


class TestHeatMaps:
    def test_names_with_to_in_them_are_told_apart(self) -> None:
        names = ["a", "a_to_b", "b"]
        metrics = {"pairs": {"a_to_b_to_b": figures(0.1), "a_to_b": figures(0.2), "b_to_a_to_b": figures(0.3)}}
        found = {(pair.query, pair.gallery): pair.figures["recall@10"] for pair in pairs_of(metrics, names)}
        assert found == {("a_to_b", "b"): 0.1, ("a", "b"): 0.2, ("b", "a_to_b"): 0.3}

    def test_letters_can_be_read_on_every_colour(self) -> None:
        def luminance(colour: str) -> float:
            parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
            linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
            return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

        metrics = {"pairs": {"a_to_b": figures(0.0)}}
        for recall in np.linspace(0, 1, 101).tolist():
            metrics["pairs"]["a_to_b"]["recall@10"] = recall
            cell = heat_maps(pairs_of(metrics, ["a", "b"]), ["a", "b"])[0].rows[0][1][0]
            assert cell is not None
            assert cell.ink == ink_on(cell.background)
            lighter, darker = sorted((luminance(cell.background), luminance(cell.ink)), reverse=True)
            assert (lighter + 0.05) / (darker + 0.05) >= 4.0, recall  # large bold figures need 3

    def test_chance_is_on_the_scale_where_it_belongs(self) -> None:
        metrics = {
            "pairs": {
                "a_to_b": figures(0.9, **{"chance_recall@10": 0.1, "chance_median_rank": 50.5}),
                "b_to_a": figures(0.8, **{"chance_recall@10": 0.3, "chance_median_rank": 20.0}),
            }
        }
        recall, rank = heat_maps(pairs_of(metrics, ["a", "b"]), ["a", "b"])
        assert recall.chance == (10.0, 30.0, "0.100 to 0.300")
        assert rank.chance is not None
        assert rank.chance[0] == pytest.approx(0.0, abs=1e-6), "the worst end of the scale of ranks"


class TestMaps:
    def scored(self, longitude: list[float], latitude: list[float]) -> ScoredPlaces:
        places = Places(np.array(longitude), np.array(latitude))
        data = SimpleNamespace(name="d", places=places, key=str)
        rows = np.arange(len(longitude))
        return ScoredPlaces("a query", "text", "tile", data, rows, np.linspace(-1, 1, len(rows), dtype=np.float32))  # type: ignore[arg-type]

    def dots(self, scored: ScoredPlaces) -> tuple[Any, list[tuple[float, float]]]:
        view = map_view(scored, Album({}, 0))
        points = [point for dots in view.dots for point in numbers(dots.path)]
        assert len(points) == len(scored.rows)
        assert all(0 <= x <= view.width and 0 <= y <= view.height for x, y in points)
        return view, points

    def test_places_all_over_the_earth_lie_within_its_outline(self) -> None:
        view, points = self.dots(self.scored([-179.9, 0, 179.9, 10, 0, 0], [0, 0, 0, 50, 89.9, -89.9]))
        outline = np.array(numbers(view.outline))
        for x, y in points:
            row = outline[np.abs(outline[:, 1] - y) < 8]
            assert row[:, 0].min() - 1 <= x <= row[:, 0].max() + 1
        assert [best.score for best in view.best] == sorted((best.score for best in view.best), reverse=True)

    def test_a_part_of_the_earth_is_drawn_large_even_across_the_antimeridian(self) -> None:
        longitude = [179.0, -179.0, 178.0, -178.5]
        view, points = self.dots(self.scored(longitude, [10.0, 11.0, 12.0, 13.0]))
        east = {value: x for value, (x, _) in zip(longitude, points, strict=True)}
        assert east[178.0] < east[179.0] < east[-179.0] < east[-178.5]
        assert max(x for x, _ in points) - min(x for x, _ in points) > view.width / 2

    def test_one_place_and_equal_scores_can_be_drawn(self) -> None:
        self.dots(self.scored([5.0], [5.0]))
        scored = self.scored([5.0, 6.0], [5.0, 6.0])
        scored.scores[:] = 0.25
        self.dots(scored)

    def test_places_are_written_as_people_write_them(self) -> None:
        places = Places(np.array([-0.5, np.nan]), np.array([-12.345, np.nan]))
        assert place_text(places, 0) in ("12.35° S, 0.50° W", "12.34° S, 0.50° W")
        assert place_text(places, 1) == place_text(None, 0) == ""


class TestAlbum:
    def album(self, budget: int, preview: Any) -> tuple[Album, Any]:
        modality = SimpleNamespace(reads_files=False, preview=preview)
        data = SimpleNamespace(name="d", places=None, key=str, cell=lambda name, row, is_file: row)
        return Album({"m": modality}, budget), data  # type: ignore[dict-item]

    def test_what_has_no_room_is_left_out_with_a_note(self) -> None:
        album, data = self.album(1000, lambda cell, size: Preview("image/png", bytes(300)))
        taken = [album.take(album.look_at(data, "m", row)) for row in range(5)]
        assert [seen.kind for seen in taken] == ["image", "image", None, None, None]
        assert album.spent <= 1000
        assert "keep the page small" in taken[-1].note

    def test_each_is_made_once_and_what_cannot_be_says_why(self) -> None:
        calls: list[int] = []

        def preview(cell: int, size: int) -> Preview | None:
            calls.append(cell)
            if cell == 1:
                raise ValueError("bits are missing")
            return None if cell == 2 else Preview("image/svg+xml" if cell == 3 else "text/plain; charset=utf-8", b"<b>")

        album, data = self.album(1000, preview)
        seen = [album.look_at(data, "m", row) for row in (0, 1, 2, 3, 0, 1)]
        assert calls == [0, 1, 2, 3]
        assert [s.kind for s in seen] == ["text", None, None, None, "text", None]
        assert "bits are missing" in seen[1].note
        assert seen[3].note == "no preview", "an SVG picture may hold a script"
        assert album.look_at(data, "unknown", 0).note == "no preview"

    def test_a_recording_that_cannot_be_drawn_can_still_be_heard(self) -> None:
        album, data = self.album(10_000, lambda cell, size: Preview("audio/ogg", b"OggS and nothing more"))
        seen = album.look_at(data, "m", 0)
        assert (seen.kind, seen.picture) == ("audio", "")


class TestWithLess:
    """Runs of older versions, runs without this or that: the page has what there is."""

    def page(self, run: Run, tmp_path: Path, metrics: dict[str, Any], **more: Any) -> Any:
        record = SpaceRecord.model_validate(json.loads((run.folder / "space/space.json").read_text()))
        subject = Subject(**{"folder": tmp_path / "old", "stages": {}, "record": record, "metrics": metrics, **more})
        write_report(tmp_path / "report.html", subject)
        parsed = read((tmp_path / "report.html").read_text(encoding="utf-8"))
        assert parsed.problems == []
        return parsed

    def test_metrics_of_an_older_run(self, run: Run, tmp_path: Path) -> None:
        kept = ("recall@1", "recall@5", "median_rank", "chance_recall@1", "gallery", "data", "emergent", "trained_in")
        new = json.loads((run.folder / "metrics.json").read_text())
        pairs = {n: {k: f[k] for k in kept} for n, f in new["pairs"].items() if "+" not in n}
        parsed = self.page(run, tmp_path, {"format": 1, "gallery": 12, "pairs": pairs, "stages": []})
        assert len(classes(parsed, "td", "cell")) == 3 * len(pairs)
        assert not classes(parsed, "article", "example")
        assert not classes(parsed, "figure", "map")

    def test_nothing_but_a_classification(self, run: Run, tmp_path: Path) -> None:
        new = json.loads((run.folder / "metrics.json").read_text())
        parsed = self.page(run, tmp_path, {"format": 1, "gallery": 0, "pairs": {}, "zero_shot": new["zero_shot"]})
        assert not classes(parsed, "td", "cell")
        assert classes(parsed, "table", "confusion")

    def test_stages_that_are_gone_or_cut_off(self, run: Run, tmp_path: Path) -> None:
        folder = tmp_path / "01-clip"
        folder.mkdir()
        (folder / "log.jsonl").write_text('{"step": 10, "epoch": 0, "loss": 1.5, "beta/a_b": 2, "beta/b_c": 3}\n{"ste')
        view = stage_view(1, "clip", folder)
        assert [chart.title for chart in view.charts] == ["loss", "beta"]
        assert [line.name for line in view.charts[1].lines] == ["a b", "b c"]
        metrics = json.loads((run.folder / "metrics.json").read_text())
        parsed = self.page(run, tmp_path, metrics, stages={"clip": folder, "audio": tmp_path / "none"})
        assert len(classes(parsed, "article", "stage")) == 2
        assert "Its record says: not run." in " ".join("".join(parsed.text).split())

    def test_best_and_weakest_are_those_that_chance_explains_least_and_most(self, run: Run, tmp_path: Path) -> None:
        def pair(recall: float, chance: float) -> dict[str, Any]:
            return {
                "recall@10": recall,
                "chance_recall@10": chance,
                "gallery": 100,
                "emergent": True,
                "trained_in": None,
            }

        pairs = {
            "text_to_audio": pair(0.6, 0.3),  # many captions are the same
            "audio_to_ground_image": pair(0.5, 0.1),
            "audio_to_satellite": pair(0.4, 0.1),
        }
        parsed = self.page(run, tmp_path, {"format": 1, "gallery": 100, "pairs": pairs})
        text = " ".join("".join(parsed.text).split())
        assert "is audio to ground_image: the right answer is among the first 10 of 100 in 50.0% of the" in text
        assert "The weakest is text to audio with 60.0%, by chance 30.0%." in text

    @pytest.mark.parametrize(
        ("direction", "modalities", "shown"),
        [
            ("first_to_second", ["satellite", "photo"], "satellite to photo (train to anchor)"),
            ("second_to_first", ["photo", "satellite"], "satellite to photo (train to anchor)"),
            ("second_to_first", ["satellite", "photo"], "photo to satellite (anchor to train)"),
            ("first_to_second", ["satellite", "sound"], "satellite to sound"),
            ("both", ["satellite", "photo"], "both"),
        ],
    )
    def test_a_direction_is_told_by_the_modalities(
        self, tmp_path: Path, direction: str, modalities: list[str], shown: str
    ) -> None:
        """Which is first is in no chain file that names anchors."""
        pair = {"modalities": modalities, "loss": {"name": "infonce", "direction": direction}}
        record = {"trains": ["satellite", "sound"], "anchors": ["photo"], "inputs": {"stage": {"pairs": [pair]}}}
        (tmp_path / "stage.json").write_text(json.dumps(record))
        assert stage_view(1, "s", tmp_path).facts == ((" and ".join(modalities), f"infonce, {shown}"),)

    def test_many_bad_samples_are_counted_and_the_first_are_named(self, tmp_path: Path) -> None:
        lines = [
            {"event": "bad_sample", "step": i, "key": f"<k{i % 60}>", "modality": "m", "reason": "cut off"}
            for i in range(90)
        ]
        (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        view = stage_view(1, "s", tmp_path)
        assert view.skipped_in_all == 60, "each once"
        assert len(view.skipped) == 20

    def test_a_modality_that_no_stage_touches_has_a_lane(self, run: Run) -> None:
        record = SpaceRecord.model_validate(json.loads((run.folder / "space/space.json").read_text()))
        view = stage_view(1, "audio", next((run.folder / "stages").glob("*-audio")))
        graph = lineage_graph(record, [view], Starts({}, {}))
        assert graph is not None
        assert {lane.name: lane.note for lane in graph.lanes}["text"] == "came with weights"
        assert lineage_graph(record, [], Starts({}, {})) is None
