"""`lorachord report`: pages of every kind in a real browser, and sentences where there is nothing to show."""

import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lorachord as lc
from lorachord.runs.folder import RunFolder
from lorachord.runs.inspect import Conflicts
from lorachord.runs.recipe import Recipe, recipe_from
from lorachord.runs.report import report
from lorachord.runs.report.sequence_drawing import draw_stages
from lorachord.runs.train import train
from lorachord_cli import main
from tests.integration.test_compare import Here, sweep
from tests.tiny_data import tree

ODD = '<img src=x onerror=alert(1)> & "two" 🎉'
"""A task's name, which is to be seen letter by letter."""
MOST = 6_000_000
"""Bytes of a page."""
STEPS = {"max_steps": 4}
KINDS: dict[str, dict[str, Any]] = {
    "joint": {"method": {"name": "mtl_lora", "r": 2, "num_ups": 2}, "training": {**STEPS, "eval_every": 2}},
    "single": {"mode": "single", "training": STEPS},
    "surgery": {"surgery": {"rule": "ortho_lora"}, "training": STEPS},
    "routed": {"method": {"name": "mixlora", "r": 2, "num_experts": 4}, "training": STEPS},
    "calibrated": {"method": {"name": "thanora", "r": 6}, "training": STEPS},
    "sequence": {"mode": "sequence", "method": {"name": "mtl_lora", "r": 2, "num_ups": 2}, "training": STEPS},
}
FIGURES = {
    "joint": {"scores", "losses", "val-scores", "spectra", "overlap", "interference"},
    "single": {"scores", "losses", "spectra", "overlap"},
    "surgery": {"scores", "losses", "conflicts", "spectra", "interference"},
    "routed": {"scores", "losses", "routing", "interference"},
    "calibrated": {"scores", "losses", "spectra", "task-ranks", "interference"},
    "sequence": {"scores", "stages", "losses", "spectra", "overlap", "interference"},
    "fused": {"means", "coefficients", "spectra"},
    "compared": {"differences", "costs", "task-scores", "transfer", "losses-0", "losses-1", "rates"},
}
"""What is drawn on each page."""


def odd(base: Path, **parts: Any) -> Recipe:
    """A recipe of two tasks, the second with the odd name."""
    made = tree(base, "colour", "size", **parts)
    made["tasks"]["own"][1] |= {"name": ODD, "source": {"path": ODD}}
    return recipe_from(made)


@pytest.fixture(scope="module")
def folders(tiny_bert: Path, task_files: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each kind, a fused adapter and a comparison."""
    folder = tmp_path_factory.mktemp("shown")
    data = folder / "data"
    for source, name in (("colour", "colour"), ("size", ODD)):
        shutil.copytree(task_files / source, data / name)
    found = {kind: train(odd(tiny_bert, **parts), folder / kind, data_dir=data).path for kind, parts in KINDS.items()}
    found["fused"] = folder / "fused"
    command = ["fuse", str(found["single"]), "--out", str(found["fused"]), "--max-rows", "8", "--method", "adamerging"]
    with warnings.catch_warnings():
        # The font of coefficients.png has no such letter.
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        assert main([*command, "--set", "steps=2"]) == 0
    found["compared"] = folder / "compared"
    base = odd(tiny_bert, training={"max_steps": 2, "log_every": 1}, method={"name": "lora", "r": 5})
    result = sweep(base, data, found["compared"], Here(), rates=(1e-2, 2e-2))
    (found["compared"] / "compare.json").write_text(json.dumps(result))
    return found


@pytest.fixture(scope="module")
def pages(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of each."""
    out = tmp_path_factory.mktemp("pages")
    return {kind: report(folder, out / f"{kind}.html", max_rows=6) for kind, folder in folders.items()}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="pages are looked at through playwright")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("pages are looked at in Debian's package chromium")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


class Seen:
    """A page in the browser, with all that went wrong and all that it asked for."""

    def __init__(self, browser: Any, path: Path) -> None:
        self.page = browser.new_page(viewport={"width": 360, "height": 740}, color_scheme="light")
        self.wrong: list[str] = []
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.wrong.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.wrong.append(request.url) if "file:" not in request.url else None)
        self.page.goto(path.as_uri())

    def __call__(self, script: str) -> Any:
        return self.page.evaluate(script)

    def figures(self) -> dict[str, int]:
        """By the name of each figure: what is drawn of its data."""
        traces = ".scatterlayer .trace, .heatmaplayer image"
        script = "[...document.querySelectorAll('.plot')].map(at => [at.id, at.querySelectorAll('%s').length])"
        return dict(self(script % traces))


@pytest.mark.parametrize("kind", FIGURES)
def test_a_page_is_drawn_at_both_widths_and_in_both_themes(kind: str, pages: dict[str, Path], browser: Any) -> None:
    assert pages[kind].stat().st_size < MOST
    seen = Seen(browser, pages[kind])
    colours = set()
    for width in (360, 1280):
        seen.page.set_viewport_size({"width": width, "height": 740})
        for theme in ("light", "dark"):
            assert seen.figures().keys() == FIGURES[kind]
            assert all(seen.figures().values()), seen.figures()
            assert seen("document.documentElement.scrollWidth") <= width
            assert seen("[...document.querySelectorAll('.plot')].every(at => at.scrollWidth <= at.clientWidth)")
            grounds = [seen("getComputedStyle(document.body).backgroundColor")]
            grounds += seen(
                "[...document.querySelectorAll('.plot .main-svg:first-child')].map(x => x.style.background)"
            )
            assert len(set(grounds)) == 1
            colours.add((theme, grounds[0]))
            seen.page.get_by_role("button", name=f"Change to the {'dark' if theme == 'light' else 'light'}").click()
    assert len(colours) == 2
    assert seen.wrong == []
    # The tasks' names are text, also where Plotly reads HTML.
    assert seen("document.images.length") == 0
    assert ODD in seen("document.body.innerText")
    assert seen("[...document.querySelectorAll('svg text')].some(x => x.textContent.includes('<img'))")
    # A screen reader has a name and the numbers of each figure, and the parts of the page.
    assert seen("[...document.querySelectorAll('.plot')].every(x => x.ariaLabel.length > 20)")
    assert seen("[...document.querySelectorAll('figure')].every(x => x.querySelectorAll('details td').length > 0)")
    assert all(seen(f"document.querySelectorAll('{part}').length") == 1 for part in ("main", "header", "nav", "h1"))
    seen.page.close()


def test_the_slider_moves_the_map_by_key(
    folders: dict[str, Path], pages: dict[str, Path], browser: Any, tmp_path: Path
) -> None:
    found = lc.inspect(folders["surgery"], max_rows=0)["conflicts"]
    assert isinstance(found, Conflicts)
    seen = Seen(browser, pages["surgery"])
    slider = seen.page.get_by_role("slider", name="step")
    slider.focus()
    for at, step in enumerate(found.steps):
        shown = np.array(seen("document.getElementById('conflicts').data[0].z"), dtype=float)
        assert shown == pytest.approx(found.by_pair[at], abs=0.006, nan_ok=True)
        assert slider.get_attribute("aria-valuetext") == str(step)
        slider.press("ArrowRight")
    assert len(found.steps) == 4
    with seen.page.expect_download() as download:
        seen.page.get_by_role("button", name="Save as PNG: Conflicts").click()
    download.value.save_as(tmp_path / "saved.png")
    assert (tmp_path / "saved.png").read_bytes()[:4] == b"\x89PNG"
    assert seen.wrong == [url for url in seen.wrong if url.startswith(("data:", "blob:"))]
    seen.page.close()


def test_figures_have_the_numbers_of_the_files(folders: dict[str, Path]) -> None:
    compared = lc.load_comparison(folders["compared"])
    result = json.loads((folders["compared"] / "compare.json").read_text())
    assert compared.result == result
    assert compared.verdict == result["verdict"]["text"]
    rows = [row for row in result["rows"] if row.get("difference") and row["name"] != "untrained"]
    drawn = compared.drawings["differences"].data[0]
    assert drawn["x"] == pytest.approx([row["difference"]["value"] for row in rows], rel=1e-4, abs=1e-9)
    assert drawn["error_x"]["array"] == [row["difference"]["half_width"] for row in rows]
    for drawing in compared.drawings.values():
        assert drawing.figure().data
    found = lc.inspect(folders["joint"], max_rows=0)
    line = found.drawings["spectra"].data[0]
    assert line["y"] == pytest.approx(np.nanmean(found["spectra"].shares[0], axis=0), rel=1e-3)  # type: ignore[attr-defined]


def test_a_sequence_shows_each_tasks_score_from_its_own_stage_on(folders: dict[str, Path]) -> None:
    metrics = RunFolder.open(folders["sequence"]).metrics
    drawing = draw_stages(metrics)
    first, second = metrics["order"]
    stages = metrics["stages"]["dev"]
    assert [drawn["y"] for drawn in drawing.data] == [
        pytest.approx([stages[0][first], stages[1][first]], rel=1e-4),
        [None, pytest.approx(stages[1][second], rel=1e-4)],
    ]
    # The first task's core is frozen when the second is learned.
    assert drawing.words == (
        f"In the end the earlier tasks have lost 0.000 on average, and {first} has lost the most, 0.000."
    )
    with pytest.raises(ValueError, match="nothing of stages"):
        draw_stages({"dev": metrics["dev"]})


def test_inspections_and_comparisons_show_their_figures_in_a_notebook(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("IPython.display", reason="notebooks need IPython")
    for shown in (lc.inspect(folders["surgery"], max_rows=0), lc.load_comparison(folders["compared"])):
        displayed: list[Any] = []
        monkeypatch.setattr("IPython.display.display", displayed.append)
        shown._ipython_display_()
        assert displayed == list(shown.drawings.values())
        assert "lora" in capsys.readouterr().out
        for drawing in displayed:
            bundle = drawing._repr_mimebundle_(include=None, exclude=None)
            assert bundle["application/vnd.plotly.v1+json"]["data"]
            assert drawing.words in bundle["text/plain"]
            assert "<img" not in bundle["text/html"]
            assert len(json.dumps(bundle)) < 100_000


# What is missing is a sentence


def printed(capsys: pytest.CaptureFixture[str], status: int, *arguments: object) -> str:
    capsys.readouterr()
    assert main(["report", *map(str, arguments)]) == status
    told = capsys.readouterr()
    return told.out if status == 0 else told.err


def test_what_cannot_be_shown_is_refused_in_a_sentence(
    folders: dict[str, Path], task_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "is no run, no fused adapter and no LoRA; it is empty or missing" in printed(capsys, 2, tmp_path / "nowhere")
    assert "no run, no fused adapter and no LoRA; it holds" in printed(capsys, 2, task_files)
    run = Path(shutil.copytree(folders["surgery"], tmp_path / "run"))
    (tmp_path / "notes.txt").write_text("mine")
    assert "is there already, and is no report" in printed(capsys, 2, run, "-o", tmp_path / "notes.txt")
    assert "is a folder: name a file" in printed(capsys, 2, run, "-o", tmp_path)
    assert "leave out against" in printed(capsys, 2, folders["compared"], "--against", run)
    (run / "metrics.json").unlink()
    assert "is not finished" in printed(capsys, 2, run)
    assert not (run / "report.html").exists()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "compare.json").write_text("{}")
    assert "damaged or of another origin: it has no tasks" in printed(capsys, 2, foreign)
    with pytest.raises(ValueError, match="is no comparison"):
        lc.load_comparison(task_files)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_page_says_why_a_figure_is_missing(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(folders["joint"], tmp_path / "run"))
    (run / "log.jsonl").write_text('{"step": 1, "loss')
    # Twice, since an earlier report is replaced.
    for _ in range(2):
        assert str(run / "report.html") in printed(capsys, 0, run, "--max-rows", 0)
    text = (run / "report.html").read_text()
    assert "The run had no surgery, so it wrote down no gradients of tasks" in text
    assert "No rows were to be read, and interference needs some." in text
    assert "damaged or cut off" in text
    assert "there are no training curves" in text
    shutil.rmtree(run / "adapter")
    assert "report.html" in printed(capsys, 0, run)
    assert 'data-drawing="spectra"' not in (run / "report.html").read_text()
    begun = tmp_path / "begun"
    begun.mkdir()
    for name in ("sweep.json", "examples.json"):
        shutil.copy(folders["compared"] / name, begun)
    assert "report.html" in printed(capsys, 0, begun)
    assert "No verdict" in (begun / "report.html").read_text()
