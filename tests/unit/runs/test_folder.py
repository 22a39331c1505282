"""The run folder: what a start writes, and what it refuses to overwrite."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from lorachord.runs.folder import RunFolder
from lorachord.runs.recipe import Recipe, read_recipe
from tests import tiny_data


def recipe(model: str = "tiny/bert", **parts: Any) -> Recipe:
    return tiny_data.recipe(Path(model), "colour", "size", **parts)


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(params=[False, True], ids=["unfinished", "finished"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with a run, and something in it that a start would not write."""
    folder = RunFolder.start(tmp_path / "run", recipe(), data_dir=None)
    folder.write("log.jsonl", "kept\n")
    if request.param:
        folder.write_json("metrics.json", {"dev": {"mean": 0.5}})
    return folder.path


def test_a_fresh_start_writes_down_what_the_run_is(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "new"
    folder = RunFolder.start(out, recipe(seed=7), data_dir=tmp_path / "data")
    assert sorted(contents(out)) == ["README.md", "environment.json", "recipe.yaml"]
    assert read_recipe(out / "recipe.yaml") == folder.recipe == recipe(seed=7)
    environment = json.loads((out / "environment.json").read_text())
    assert environment["seed"] == 7
    assert environment["data_dir"] == str(tmp_path / "data")
    assert environment["versions"]["lorachord"] == version("lorachord")
    assert environment["versions"]["torch"] == version("torch")
    readme = (out / "README.md").read_text()
    assert readme.startswith("# lora on tiny/bert, joint, seed 7\n")
    assert f"lorachord train {out / 'recipe.yaml'} --data {tmp_path / 'data'} --out" in readme
    assert f"peft=={version('peft')}" in readme
    # An index has no builds such as 2.13.0+cpu.
    assert "+" not in readme
    assert not folder.finished


def test_a_relative_data_folder_is_found_from_anywhere_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    RunFolder.start("run", recipe(), data_dir="data")
    assert RunFolder.open("run").data_dir == str(tmp_path / "data")
    assert RunFolder.start("other", recipe(), data_dir=None).data_dir is None


def test_an_empty_folder_is_as_good_as_none(tmp_path: Path) -> None:
    assert RunFolder.start(tmp_path, recipe(), data_dir=None).recipe == recipe()


def test_a_folder_with_a_run_is_refused_with_the_ways_on(run: Path) -> None:
    before = contents(run)
    state = "a finished run" if "metrics.json" in before else "an unfinished run"
    with pytest.raises(ValueError, match=rf"run holds {state}: name a new folder.*--resume.*--force"):
        RunFolder.start(run, recipe(), data_dir=None)
    assert contents(run) == before


def test_force_replaces_a_run_whole(run: Path) -> None:
    RunFolder.start(run, recipe(seed=3), data_dir=None, force=True)
    assert sorted(contents(run)) == ["README.md", "environment.json", "recipe.yaml"]
    assert RunFolder.open(run).recipe.seed == 3


def test_resuming_goes_on_with_what_the_folder_holds(run: Path) -> None:
    before = contents(run)
    folder = RunFolder.start(run, recipe(), data_dir=None, resume=True)
    assert contents(run) == before
    assert folder.recipe == recipe()
    assert folder.finished == ("metrics.json" in before)


def test_resuming_where_there_is_nothing_starts(tmp_path: Path) -> None:
    assert not RunFolder.start(tmp_path / "new", recipe(), data_dir=None, resume=True).finished


@pytest.mark.parametrize(
    "made", [{"recipe.yaml": "x"}, {"environment.json": "{}"}, {"notes.txt": "keep"}, {"a/b": "c"}]
)
@pytest.mark.parametrize("flags", [{}, {"force": True}, {"resume": True}], ids=str)
def test_a_folder_that_is_no_run_is_never_touched(tmp_path: Path, made: dict[str, str], flags: dict[str, bool]) -> None:
    for name, text in made.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match="holds something that is no run; name a new folder"):
        RunFolder.start(tmp_path, recipe(), data_dir=None, **flags)
    assert contents(tmp_path) == made


@pytest.mark.parametrize("flags", [{}, {"force": True}, {"resume": True}], ids=str)
def test_a_file_in_the_place_of_the_folder_is_never_touched(tmp_path: Path, flags: dict[str, bool]) -> None:
    (tmp_path / "run").write_text("keep")
    with pytest.raises(ValueError, match="holds something that is no run"):
        RunFolder.start(tmp_path / "run", recipe(), data_dir=None, **flags)
    assert (tmp_path / "run").read_text() == "keep"


def test_resuming_with_another_recipe_names_all_that_differs(run: Path) -> None:
    before = contents(run)
    other = recipe("tiny/other", training={"learning_rate": 0.5}, method={"name": "lora", "r": 2, "alpha": 4})
    with pytest.raises(ValueError, match="another recipe, which cannot be resumed with this one") as caught:
        RunFolder.start(run, other, data_dir=None, resume=True)
    lines = str(caught.value).splitlines()
    assert lines[1:-1] == [
        "  model.name: the run has 'tiny/bert', the recipe 'tiny/other'",
        "  method.alpha: the run has None, the recipe 4",
        "  training.learning_rate: the run has 0.01, the recipe 0.5",
    ]
    assert "its own recipe.yaml" in lines[-1]
    assert contents(run) == before


@pytest.mark.parametrize("flags", [{"resume": True}, {"resume": True, "force": True}], ids=str)
def test_a_spelt_out_default_is_no_other_recipe(run: Path, flags: dict[str, bool]) -> None:
    same = recipe(training={"schedule": "linear"}, seed=0)
    assert RunFolder.start(run, same, data_dir=None, **flags).path == run


@pytest.mark.parametrize("made", [None, "", "notes.txt"])
def test_what_is_no_run_cannot_be_opened(tmp_path: Path, made: str | None) -> None:
    folder = tmp_path / "run"
    if made is not None:
        folder.mkdir()
    if made:
        (folder / made).write_text("x")
    found = "it holds notes.txt" if made else "it is empty or missing"
    with pytest.raises(ValueError, match=f"run is no run folder, which would hold a recipe.yaml; {found}"):
        RunFolder.open(folder)


def test_a_run_is_finished_when_its_metrics_are_there(tmp_path: Path) -> None:
    folder = RunFolder.start(tmp_path / "run", recipe(), data_dir=None)
    with pytest.raises(ValueError, match=r"not finished; go on with `lorachord train \.\.\. --resume`"):
        folder.require_finished()
    folder.write_json("metrics.json", {"dev": {"mean": 0.25}})
    assert folder.require_finished().metrics["dev"]["mean"] == 0.25


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder.start(tmp_path / "run", recipe(), data_dir=None)
    folder.write_json("metrics.json", {"mean": 1})

    def broken(*_: object, **__: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(Path, "write_text", broken)
    with pytest.raises(OSError, match="full"):
        folder.write_json("metrics.json", {"mean": 2})
    assert folder.metrics == {"mean": 1}
