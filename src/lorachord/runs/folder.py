"""The run folder: everything about a run in one place, and nothing overwritten unasked.

    recipe.yaml           the recipe with every default written out
    environment.json      versions, platform, seed, data folder
    README.md             what the run is, and the commands that repeat and use it
    calibration/          what was found before training, by methods that are fitted to their tasks
    adapter/              the trained adapter, heads included, as PEFT loads it
    predictions/SPLIT/    one file a task, one JSON record an example
    metrics.json          scores by split; its presence says that the run is finished
    log.jsonl             what was logged while training, one JSON object a line
    surgery/              what surgery saw and did, as arrays; see surgery/watch.py
    tensorboard/          event files, if asked for
    checkpoints/          to resume from; removed when the run is finished

A run of mode `single` has such a folder for each task in place of adapter/, predictions/ and log.jsonl; one of mode
`sequence` has one for each stage, in stages/, of which the last holds its model.
"""

from __future__ import annotations

import logging
import platform
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lorachord.runs.readme import run_readme
from lorachord.runs.recipe import Recipe, read_recipe
from lorachord.whole import read_json, write_json, write_text

logger = logging.getLogger("lorachord")

FILES = ("recipe.yaml", "environment.json", "README.md", "metrics.json", "log.jsonl")
FOLDERS = ("calibration", "adapter", "predictions", "surgery", "tensorboard", "checkpoints", "stages")
"""What a run folder holds, which no task can be called."""
STARTING = ".starting"
"""Is in a folder while a run is put into it."""
LAST_KEY = b"\nstart_from:"
"""What a whole recipe.yaml ends with."""
PACKAGES = ("lorachord", "torch", "transformers", "peft", "accelerate", "datasets", "numpy", "scikit-learn", "scipy")


@dataclass(frozen=True)
class RunFolder:
    """A run's folder.

    Attributes:
        path: where it is.
        recipe: what it runs.
    """

    path: Path
    recipe: Recipe

    @classmethod
    def start(
        cls, path: str | Path, recipe: Recipe, *, data_dir: str | Path | None, resume: bool = False, force: bool = False
    ) -> RunFolder:
        """Make the folder of a new run, or go on with an old one.

        Args:
            data_dir: where the data lie, to be recorded.
            resume: go on with what the folder holds, if anything.
            force: remove the run that it holds first; then nothing is resumed.

        Raises:
            ValueError: the folder holds a run and neither was asked for, or something that is no run; the recipe to
                resume is not that of the run.
        """
        path = Path(path)
        found = cls.check(path, recipe, resume=resume, force=force)
        if found is not None:
            return found
        path.mkdir(parents=True, exist_ok=True)
        # Until the folder is a run, this file says that what it holds is of no use.
        (path / STARTING).touch()
        for entry in path.iterdir():
            if entry.name != STARTING:
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        folder, text = cls(path, recipe), recipe.to_yaml()
        folder.write("recipe.yaml", text)
        folder.write_json("environment.json", _environment(recipe, text, data_dir))
        folder.write("README.md", run_readme(path.absolute(), recipe, folder.data_dir, PACKAGES[:4]))
        (path / STARTING).unlink()
        return folder

    @classmethod
    def check(cls, path: str | Path, recipe: Recipe, *, resume: bool = False, force: bool = False) -> RunFolder | None:
        """Whether `start` may go ahead, before anything is changed.

        Returns:
            The run to resume, or None where a new one is to be made.

        Raises:
            ValueError: as `start`.
        """
        path = Path(path)
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            return None
        if path.is_dir() and (path / STARTING).is_file():
            if force or resume:
                return None
            raise ValueError(f"{path} holds the beginning of a run that was stopped: start it anew by --resume.")
        if not (path / "recipe.yaml").is_file() or not (path / "environment.json").is_file():
            raise ValueError(f"{path} holds something that is no run; name a new folder.")
        if force:
            return None
        found = cls.open(path)
        if not resume:
            state = "a finished run" if found.finished else "an unfinished run"
            raise ValueError(f"{path} holds {state}: name a new folder, go on with --resume, or remove it by --force.")
        differing = differences(found.recipe.to_dict(), recipe.to_dict())
        if differing:
            raise ValueError(
                f"{path} holds a run of another recipe, which cannot be resumed with this one:\n  "
                + "\n  ".join(differing)
                + "\nResume it with its own recipe.yaml, or name a new folder."
            )
        return found

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """The folder of a run that was started.

        Raises:
            ValueError: there is no run.
        """
        path = Path(path)
        if not (path / "recipe.yaml").is_file():
            found = sorted(entry.name for entry in path.iterdir())[:8] if path.is_dir() else []
            holds = f"it holds {', '.join(found)}" if found else "it is empty or missing"
            raise ValueError(f"{path} is no run folder, which would hold a recipe.yaml; {holds}.")
        if (path / STARTING).is_file():
            raise ValueError(f"{path} holds the beginning of a run that was stopped: start it anew by --resume.")
        _check_digest(path)
        run = cls(path, read_recipe(path / "recipe.yaml"))
        check_names([task.name for task in run.recipe.tasks.chosen()], str(path / "recipe.yaml"))
        return run

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return (self.path / "metrics.json").is_file()

    def require_finished(self) -> RunFolder:
        """Itself.

        Raises:
            ValueError: the run is not finished.
        """
        if not self.finished:
            raise ValueError(f"The run in {self.path} is not finished; go on with `lorachord train ... --resume`.")
        return self

    @property
    def metrics(self) -> dict[str, Any]:
        """What `metrics.json` holds."""
        return read_json(self.path / "metrics.json")

    @property
    def data_dir(self) -> str | None:
        """The data folder that the run was started with."""
        path = self.path / "environment.json"
        found = read_json(path, ("data_dir",))["data_dir"]
        if found is not None and not isinstance(found, str):
            raise ValueError(f"{path} is damaged: its data_dir is {found!r} and no path.")
        return found

    def write(self, name: str, text: str) -> None:
        """Write a file whole: a reader sees the old one or the new one."""
        write_text(self.path / name, text)

    def write_json(self, name: str, value: Any) -> None:
        """The same for plain data."""
        write_json(self.path / name, value)


def check_names(names: Iterable[str], where: str = "the recipe") -> None:
    """Whether tasks can be called so: their names are paths in run folders, keys of a log, and names of modules.

    Args:
        where: they were read from, for the error.

    Raises:
        ValueError: a name that leads elsewhere, is a file of a run, or holds what a path cannot.
    """
    for name in names:
        parts = name.split("/")
        odd = [part for part in parts if part in ("", ".", "..") or part.startswith("~") or len(part.encode()) > 200]
        if odd or "\\" in name or not name.isprintable() or parts[0] in (*FILES, *FOLDERS, STARTING):
            shown = name if len(name) <= 60 else f"{name[:60]}..."
            raise ValueError(f"A task cannot be called {shown!r} ({where}): its name is a path inside the run folder.")


def _check_digest(path: Path) -> None:
    """Whether the recipe of a run is as it was written.

    Raises:
        ValueError: it was cut off.
    """
    if not (path / "environment.json").is_file():
        return
    recorded = read_json(path / "environment.json").get("recipe_sha256")
    found = (path / "recipe.yaml").read_bytes()
    if recorded is None or sha256(found).hexdigest() == recorded:
        return
    if not found.endswith(b"\n") or LAST_KEY not in found:
        raise ValueError(f"{path / 'recipe.yaml'} is cut off: it is not the recipe that the run was started with.")
    logger.warning("%s was changed after the run was started", path / "recipe.yaml")


def _environment(recipe: Recipe, text: str, data_dir: str | Path | None) -> dict[str, Any]:
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "platform": platform.platform(),
        "seed": recipe.seed,
        "recipe_sha256": sha256(text.encode()).hexdigest(),
        "data_dir": None if data_dir is None else str(Path(data_dir).expanduser().absolute()),
    }


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """What differs between two trees of plain data, a line each."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [
            line
            for key in keys
            for line in differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        ]
    return [] if old == new else [f"{path}: the run has {old!r}, the recipe {new!r}"]
