"""Drawings as plain data: escaped names, finite numbers, few frames, short layers."""

import numpy as np
import pytest

from lorachord.runs.drawing import Drawing, Frames, escaped, heat, layer_axis, line, plain, points
from lorachord.runs.inspect.conflicts import Conflicts
from lorachord.runs.inspect.draw_updates import thinned
from lorachord.runs.inspect.drawings import drawing_of


def test_names_are_shown_letter_by_letter_and_keep_both_ends() -> None:
    assert escaped("<b>a</b> & b") == "&lt;b&gt;a&lt;/b&gt; &amp; b"
    assert escaped("lab_contradiction_0", 10) == "lab_c…on_0"
    assert len(escaped("x" * 99, 10)) == 10


def test_numbers_that_are_not_finite_are_none() -> None:
    assert plain(np.array([[1.0, np.nan], [np.inf, 2.0]])) == [[1.0, None], [None, 2.0]]
    assert plain([np.int64(3), np.float64(0.123456789)]) == [3, 0.12346]


@pytest.mark.parametrize(("count", "size"), [(1, 10), (7, 10), (1000, 10), (1000, 10_000)])
def test_few_of_many_maps_are_kept_with_the_first_and_the_last(count: int, size: int) -> None:
    kept = thinned(count, size)
    assert kept[0] == 0
    assert kept[-1] == count - 1
    assert len(kept) <= 60
    assert len(kept) * size <= 120_000


def test_layers_have_names_of_one_width_whose_beginning_goes_first() -> None:
    names = [f"base.encoder.layer.{at}.attention.self.query" for at in range(100)]
    axis = layer_axis(names)
    assert axis["ticktext"][0] == "0.attention.self.query"
    assert len(axis["ticktext"]) <= 51
    assert axis["range"] == [99.5, -0.5]


def test_a_slider_in_a_notebook_has_each_frame() -> None:
    frames = Frames("step", ("1", "5"), ([[0.1]], [[0.2]]))
    drawing = Drawing(
        "a", "A", "It is.", "", [["x"], ["1"]], [heat([[0.1]], low=-1, high=1, legend="z")], frames=frames
    )
    [slider] = drawing.figure().layout.sliders
    assert [step.label for step in slider.steps] == ["1", "5"]
    assert slider.steps[1].args[0]["z"] == [[[0.2]]]
    assert Drawing("a", "A", "It is.", "", [["x"]], [line("a", [1], [2])]).figure().data[0].y == (2,)


def test_conflicts_are_drawn_by_pair_and_many_tasks_are_numbered() -> None:
    tasks = ("a", "b", "c", "d", "e")
    cosines = np.zeros((2, 1, 2, 5, 5), dtype=np.float16)
    cosines[1, 0, 0, 0, 1], cosines[1, 0, 1, 0, 1] = 0.5, -0.25
    found = Conflicts(tasks, np.array([1, 2]), ("layer",), cosines, np.zeros((2, 1, 2)))
    assert found.by_pair[1, 0].tolist() == [0.125, *[0.0] * 9]
    drawing = drawing_of(found)
    assert drawing.frames is not None
    assert drawing.frames.labels == ("1", "2")
    assert drawing.frames.values[1][0][0] == pytest.approx(0.12, abs=0.006)
    assert drawing.layout["xaxis"]["ticktext"][:2] == ["1 · 2", "1 · 3"]
    assert ["task 1", "a", "", ""] in [list(row) for row in drawing.rows]


def test_many_rows_differ_in_colour_or_marker() -> None:
    looks = [points(f"row {at}", [0], [0], at)["marker"] for at in range(40)]
    assert len({(look["color"], look["symbol"]) for look in looks}) == 40
