"""The verdict of `lorachord compare` where the right one is known: the lab at k = 0 and at k = 1, five draws of each.

    python benchmarks/lab_verdicts.py [--out DIR] [--draws 5] [--jobs 1]

At k = 0 no two tasks contradict each other, and joint LoRA will do. At k = 1 each text has different right answers in
two tasks, so that the task must be told. Each draw is a comparison of its own, with its own sentences; a repeated
command goes on. The exit status is 1 where a verdict is another one. The figures are in `verdicts.json` of the folder.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lorachord as lc
from lorachord.runs.recipe import recipe_from
from lorachord.whole import write_json

RIGHT = {0: "none", 1: "tell"}


def recipe(k: int, draw: int) -> Any:
    return recipe_from(
        {
            "model": {"name": "minilm-l3", "kind": "encoder", "heads": "shared", "max_length": 32},
            "tasks": {"lab": {"name": "lab-contradiction", "k": k, "num_tasks": 2, "seed": draw}},
            "method": {"name": "lora", "r": 8},
            "training": {"max_steps": 60, "batch_size": 32, "learning_rate": 3e-3},
            "evaluation": {"max_rows": 200},
        }
    )


def row(found: Mapping[str, Any], k: int, draw: int) -> dict[str, Any]:
    means = {row["name"]: round(row["mean"], 4) for row in found["rows"] if "mean" in row}
    return {"k": k, "draw": draw, "verdict": found["verdict"]["kind"], "text": found["verdict"]["text"], "means": means}


def main() -> int:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    arguments.add_argument("--out", type=Path, default=Path("comparisons/lab"))
    arguments.add_argument("--draws", type=int, default=5)
    arguments.add_argument("--jobs", type=int, default=1)
    given = arguments.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    seen = []
    for draw in range(given.draws):
        for k in RIGHT:
            found = lc.compare(recipe(k, draw), ["mtl_lora"], given.out / f"k{k}-{draw}", jobs=given.jobs)
            seen.append(row(found.result, k, draw))
            print(f"k = {k}, draw {draw}: {seen[-1]['verdict']}; {seen[-1]['text']}", flush=True)
            write_json(given.out / "verdicts.json", seen)
    return int(any(line["verdict"] != RIGHT[line["k"]] for line in seen))


if __name__ == "__main__":
    sys.exit(main())
