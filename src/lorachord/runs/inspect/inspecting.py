"""`lorachord inspect`, and `lc.inspect`: the figures of a run, a fused or exported adapter, or a model in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel, PeftType
from torch import nn

from lorachord.core.context import Mixing
from lorachord.core.registry import all_methods
from lorachord.runs.folder import RunFolder
from lorachord.runs.inspect.adapter_updates import Updates, read_lora, updates_of
from lorachord.runs.inspect.conflicts import conflicts
from lorachord.runs.inspect.entropies import task_ranks
from lorachord.runs.inspect.figure import Figure
from lorachord.runs.inspect.inspection import Inspection
from lorachord.runs.inspect.masks import masks
from lorachord.runs.inspect.model_figures import RowsOfRun
from lorachord.runs.inspect.routing import routing
from lorachord.runs.inspect.spectra import EVERY, Spectra, beside, spectra
from lorachord.runs.inspect.subspaces import overlap
from lorachord.runs.sequence import last_stage
from lorachord.runs.use import load_run, open_run
from lorachord.surgery.watch import read
from lorachord.tuner import Calibration, LorachordConfig
from lorachord.tuner.adapter_files import CONFIG
from lorachord.tuner.saved_calibration import PLAIN
from lorachord.whole import read_json

FUSION = "fusion.json"


def inspect(
    what: str | Path | PeftModel,
    *,
    against: str | Path | PeftModel | None = None,
    split: str = "dev",
    max_rows: int = 256,
    data_dir: str | Path | None = None,
    batches: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> Inspection:
    """What there is to see of an adapter: see `docs/inspect.md` for the figures.

    Args:
        what: a finished run of either mode, or its `adapter` folder; a folder that `lorachord fuse` or `lorachord
            export` has made, or any plain LoRA; or a model with an adapter.
        against: another of these, whose spectrum stands beside.
        split: of the rows that a joint run reads for routing and interference. Default dev.
        max_rows: of each task, for these. Default 256; 0 reads none, so that the figures are missing.
        data_dir: where the run's data lie now. Default: as when it was trained.
        batches: for a model in memory that routes by its input: prompts of each task, as the model's inputs; see
            `routing`.

    Raises:
        ValueError: no adapter is there, or its run is not finished; `against` has no spectrum to stand beside.
    """
    if max_rows < 0:
        raise ValueError(f"max_rows is {max_rows}: give a number of rows, or 0 for none.")
    if isinstance(what, nn.Module):
        found = _of_model(what, batches)
    elif (Path(what) / FUSION).is_file():
        found = _of_fused(Path(what))
    elif (run := _run_of(Path(what))) is not None:
        found = _of_run(run, split, max_rows, data_dir)
    else:
        found = _of_loras(Path(what))
    if against is None:
        return found
    return _beside(found, inspect(against, max_rows=0))


class _Figures:
    """Figures as they are made, and the reasons of those that cannot be."""

    def __init__(self) -> None:
        self.made: dict[str, Figure] = {}
        self.absent: dict[str, str] = {}

    def add(self, name: str, make: Callable[[], Figure]) -> None:
        """Make a figure, or keep the sentence that says why there is none."""
        try:
            self.made[name] = make()
        except ValueError as error:
            self.absent[name] = str(error)

    def add_updates(self, read_updates: Callable[[], Updates]) -> None:
        """The two figures of updates."""
        try:
            updates = read_updates()
        except ValueError as error:
            self.absent["spectra"] = str(error)
            return
        self.add("spectra", lambda: spectra(updates))
        if list(updates) == [EVERY]:
            self.absent["overlap"] = "All tasks have the same update, so there is no overlap of several."
        else:
            self.add("overlap", lambda: overlap(updates))

    def inspection(self, of: str, method: str | None, tasks: Sequence[str]) -> Inspection:
        """The whole."""
        return Inspection(of, method, tuple(tasks), self.made, self.absent)


def _of_model(model: nn.Module, batches: Mapping[str, Sequence[Mapping[str, Any]]] | None) -> Inspection:
    if not isinstance(model, PeftModel):
        raise ValueError(f"Expected a PeftModel, as lorachord.attach returns it; got {type(model).__name__}.")
    figures, config = _Figures(), model.peft_config[model.active_adapter]
    method = config.method if isinstance(config, LorachordConfig) else PeftType(config.peft_type).value.lower()
    figures.add_updates(lambda: updates_of(model))
    if _routes(method) and batches is None:
        figures.absent["routing"] = "Routing needs rows: give batches={task: [inputs, ...]}, the prompts of each task."
    elif batches is not None:
        given = batches
        figures.add("routing", lambda: routing(model, given))
    return figures.inspection(method, method, config.task_names.names if isinstance(config, LorachordConfig) else ())


def _of_run(run: RunFolder, split: str, max_rows: int, data_dir: str | Path | None) -> Inspection:
    run = last_stage(run)
    tasks, method = [task.name for task in run.recipe.tasks.chosen()], run.recipe.method["name"]
    figures = _Figures()
    if run.recipe.mode == "single":
        figures.add_updates(lambda: _of_single(run, tasks))
        figures.absent["conflicts"] = "Each task was trained alone, so no gradients of tasks met."
        return figures.inspection(str(run.path), method, tasks)
    loaded = load_run(run.path)
    model = loaded[0]
    figures.add_updates(lambda: updates_of(model))
    if (run.path / "calibration" / PLAIN).is_file() and method == "thanora":
        figures.add("task_ranks", lambda: task_ranks(Calibration.load(run.path / "calibration")))
    if run.recipe.surgery is None:
        figures.absent["conflicts"] = (
            "The run had no surgery, so it wrote down no gradients of tasks: train with `surgery:` in the recipe."
        )
    else:
        figures.add("conflicts", lambda: conflicts(read(run.path / "surgery")))
    wanted = [*(["routing"] if _routes(method) else []), *(["interference"] if len(tasks) > 1 else [])]
    if max_rows == 0:
        figures.absent |= {name: f"No rows were to be read, and {name} needs some." for name in wanted}
    elif wanted:
        try:
            rows = RowsOfRun.read(run, loaded, split, max_rows, data_dir)
        except ValueError as error:
            figures.absent |= {name: f"Without the run's rows there is no {name}: {error}" for name in wanted}
        else:
            for name in wanted:
                figures.add(name, rows.routing if name == "routing" else rows.interference)
    return figures.inspection(str(run.path), method, tasks)


def _of_single(run: RunFolder, tasks: Sequence[str]) -> Updates:
    return {task: _alone(updates_of(load_run(run.path / task)[0])) for task in tasks}


def _alone(updates: Updates) -> dict[str, Any]:
    """The update of a run of one task."""
    [update] = updates.values()
    return update


def _of_fused(folder: Path) -> Inspection:
    told = read_json(folder / FUSION, ("method", "tasks", "notes"))
    figures = _Figures()
    adapters = sorted(path.parent for path in (folder / "adapter").rglob(CONFIG))
    if adapters:
        # Of heads by task there are several, around one and the same update.
        figures.add_updates(lambda: {EVERY: read_lora(adapters[0])})
        figures.absent.pop("overlap", None)
    else:
        figures.absent["spectra"] = f"{folder} holds a whole model and no LoRA, so it has no update of low rank."
    figures.add("masks", lambda: masks(told["notes"]))
    return figures.inspection(str(folder), told["method"], told["tasks"])


def _of_loras(folder: Path) -> Inspection:
    """A plain LoRA, or a folder with one a task."""
    names = sorted(entry.name for entry in folder.iterdir())[:8] if folder.is_dir() else []
    holds = f"holds {', '.join(names)}" if names else "is empty or missing"
    paths = sorted(path.parent for path in folder.rglob(CONFIG)) if names else []
    if not paths or any(folder.rglob("recipe.yaml")):
        raise ValueError(f"{folder} is no run, no fused adapter and no LoRA; it {holds}.")
    # What cannot be read at all is refused; here there is nothing else to show.
    found = {path.relative_to(folder).as_posix() if path != folder else EVERY: read_lora(path) for path in paths}
    figures = _Figures()
    figures.add_updates(lambda: found)
    return figures.inspection(str(folder), None, () if list(found) == [EVERY] else list(found))


def _run_of(path: Path) -> RunFolder | None:
    """The finished run that a folder is, or whose adapter it is."""
    if path.name == "adapter" and (path.parent / "recipe.yaml").is_file():
        path = path.parent
    return open_run(path) if (path / "recipe.yaml").is_file() else None


def _routes(method: str) -> bool:
    cls = all_methods().get(method)
    return cls is not None and cls.mixing is Mixing.INPUT


def _beside(found: Inspection, other: Inspection) -> Inspection:
    own, theirs = found["spectra"], other["spectra"]
    assert isinstance(own, Spectra)
    assert isinstance(theirs, Spectra)
    names = found.of, other.of if other.of != found.of else f"{other.of} (other)"
    # After the spectra.
    figures = {"spectra": own, "beside": beside(own, theirs, names), **found.figures}
    return Inspection(found.of, found.method, found.tasks, figures, found.absent)
