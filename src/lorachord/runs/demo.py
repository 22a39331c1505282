"""The demo: four generated tasks that contradict each other, trained alone and together; one exported, and shown.

What to expect is known in advance (see `data/lab.py`): each task alone reaches 1; a model that is not told the task
has a mean of at most 1 - k/2; one that is told reaches 1.
"""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

from lorachord.messages import table
from lorachord.models.resolve import resolve
from lorachord.runs import peft_only
from lorachord.runs.folder import RunFolder
from lorachord.runs.model import base_name
from lorachord.runs.recipe import Recipe, recipe_from
from lorachord.runs.report import NAME, report
from lorachord.runs.train import train
from lorachord.runs.use import export_run

SHARES = (0.5, 1.0)
RUNS = {"single": "lora", "lora": "lora", "hydralora": "hydralora", "mtl_lora": "mtl_lora"}
"""By the name of the row: the method."""
NUM_TEXTS = 200


def demo_recipe(row: str, k: float) -> Recipe:
    """The recipe of one row of the demo's table.

    Args:
        row: a key of `RUNS`.
        k: the share of texts on which the tasks disagree.
    """
    return recipe_from(
        {
            "model": {"name": "minilm", "kind": "encoder", "heads": "shared", "max_length": 32},
            "tasks": {"lab": {"name": "lab-contradiction", "k": k, "num_tasks": 4}},
            "method": {"name": RUNS[row], "r": 8},
            "training": {"max_steps": 100, "batch_size": 32, "learning_rate": 1e-3},
            "mode": "single" if row == "single" else "joint",
        }
    )


def demo(out: str | Path, *, force: bool = False) -> None:
    """Train, print a table, export a plain LoRA, use it in a process that has PEFT alone, and write a report.

    Args:
        out: the folder for the runs. Runs that it holds already are not made again.
        force: make them again.
    """
    out = Path(out)
    print(
        "Four tasks label the same texts. On a share k of them, two of the tasks give the opposite label of the\n"
        "other two, and no text says which task it is of. MiniLM is trained for each task alone (single), and for all\n"
        "of them together with one adapter: LoRA, HydraLoRA (routes by the text), MTL-LoRA (is told the task).\n",
        flush=True,
    )
    # The steps of sixteen trainings are of no interest here.
    logging.getLogger("lorachord").setLevel(logging.WARNING)
    for k in SHARES:
        rows = [["accuracy", "task 0", "task 1", "task 2", "task 3", "mean", "worst"]]
        for row in RUNS:
            print(f"k = {k:g}: {row} ...", file=sys.stderr)
            folder = train(demo_recipe(row, k), _path(out, row, k), resume=not force, force=force)
            scores = folder.metrics["dev"]
            values = [*(scored["score"] for scored in scores["tasks"].values()), scores["mean"], scores["worst"]]
            rows.append([row, *(f"{value:.3f}" for value in values)])
        print(f"k = {k:g}; without the task, no mean can expect more than {1 - k / 2:g}\n{table(rows)}\n", flush=True)
    _use_exported(out)
    told, untold = (_path(out, row, SHARES[-1]) for row in ("mtl_lora", "lora"))
    page = report(told, out / NAME, against=untold, max_rows=64)
    print(f"\nOne page shows what MTL-LoRA has learned at k = {SHARES[-1]:g}; open it in a browser: {page.absolute()}")


def _path(out: Path, row: str, k: float) -> Path:
    return out / f"k_{k:g}" / row


def _use_exported(out: Path) -> None:
    run = RunFolder.open(_path(out, "mtl_lora", SHARES[-1]))
    exported = out / "plain_lora"
    shutil.rmtree(exported, ignore_errors=True)
    task = run.recipe.tasks.chosen()[1]
    folder = next(path for path in export_run(run.path, exported) if path.name == task.name)

    assert run.recipe.tasks.lab is not None
    rows = run.recipe.tasks.lab.generate().dev[1][:NUM_TEXTS]
    texts = exported / "texts.txt"
    texts.write_text("".join(row["sentence1"] + "\n" for row in rows), encoding="utf-8")
    predicted = predicted_alone(resolve(base_name(run.recipe.model)), folder, texts)
    records = (run.path / "predictions" / "dev" / f"{task.name}.jsonl").read_text(encoding="utf-8").splitlines()
    ours = [json.loads(line)["prediction"] for line in records[:NUM_TEXTS]]
    same = sum(one == other for one, other in zip(predicted, ours, strict=True))
    right = sum(one == row["label"] for one, row in zip(predicted, rows, strict=True))
    print(
        f"MTL-LoRA at k = {SHARES[-1]:g} as a plain LoRA for each task: {exported}\n"
        f"A process with transformers and PEFT alone has loaded {folder}: of {len(rows)} texts, {right} right, "
        f"{same} predicted as here."
    )


def predicted_alone(base: str, lora: Path, texts: Path) -> list[int]:
    """The class of each text in a file, a text a line, in a process with transformers and PEFT alone.

    Args:
        base: a folder, or a name on the hub.
        lora: the folder of a plain LoRA.
    """
    # -P: the script finds none of the files beside it, of which some have names of Python's own modules.
    command = [sys.executable, "-P", str(peft_only.__file__), base, str(lora), str(texts)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [int(line) for line in printed.split()]
