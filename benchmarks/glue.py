"""The table of methods of docs/findings.md: all of them on four GLUE tasks with MiniLM, at equal parameters.

    python benchmarks/glue.py --data DATA --out runs/glue_methods [--methods lora mtl_lora ...] [--jobs 2]

Every method has as many trainable parameters as LoRA of rank 32, within 2 %; its learning rate is chosen by the mean
score on val, of one seed at a quarter of the steps; then it is trained with each seed. Finished runs are kept and not
made again, so that the script can be stopped. What is printed is made of all runs that are finished.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import lorachord as lc
from lorachord.runs.folder import RunFolder
from lorachord.runs.model import load_plain
from lorachord.runs.paired import compare
from lorachord.runs.recipe import Recipe, recipe_from
from lorachord.runs.train import train
from lorachord.runs.use import open_run

TASKS = ("glue_sst2", "glue_mrpc", "glue_qnli", "glue_stsb")
RATES = (1e-4, 3e-4, 6e-4)
"""A quarter of the steps would favour 1e-3, with which MTL-LoRA and MoR1E then fail in some of their full runs."""
EPOCHS, BATCH, SHARE = 2, 16, 0.25
SEEDS = (0, 1, 2)
BUDGET = 32
"""The rank of the LoRA whose parameters all have."""
NEAR = 0.02


@dataclass(frozen=True)
class Row:
    """A row of the table: a method with options that meet the budget; `single` has an adapter of that size per task."""

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    mode: str = "joint"


ROWS = {
    "lora": Row("lora", {"r": 32}),
    "single": Row("lora", {"r": 32}, mode="single"),
    "peft_lora": Row("peft_lora", {"r": 32}),
    "peft_dora": Row("peft_dora", {"r": 31}),
    "multilora": Row("multilora", {"r": 10, "num_loras": 3}),
    "mtl_lora": Row("mtl_lora", {"r": 20, "num_ups": 2}),
    "hydralora": Row("hydralora", {"r": 12, "num_experts": 4}),
    "mosld": Row("mosld", {"r": 14, "num_experts": [2, 3, 4, 5]}),
    "mode": Row("mode", {"r": 7, "num_experts": 4}),
    "malora": Row("malora", {"r": 48, "num_experts": 3, "expert_rank": 4}),
    "moelora": Row("moelora", {"r": 6, "num_experts": 5}),
    "mixlora": Row("mixlora", {"r": 4, "num_experts": 8, "alpha": 16.0}),
    "mor1e": Row("mor1e", {"r1": 4, "r2": 12}),
    "thanora": Row("thanora", {"r": 32}),
    "allot": Row("allot", {"r": 32, "num_ups": 1}),
    "allot (random)": Row("allot", {"r": 32, "num_ups": 1, "choose": "random"}),
}


def recipe(row: Row, rows: int, seed: int, rate: float, share: float = 1.0) -> Recipe:
    """`share` is that of the steps, which are as many as two epochs take; 1 for a final run, which is scored on dev."""
    steps = round(share * EPOCHS * len(TASKS) * rows / BATCH)
    tree = {
        "model": {"name": "minilm", "kind": "encoder", "heads": "per_task", "max_length": 48},
        "tasks": {"suite": "glue", "only": list(TASKS), "max_rows": rows},
        "method": {"name": row.method, **row.options},
        "mode": row.mode,
        # With batches of one task, LoRA's runs with 1e-3 do not all leave chance.
        "mixture": {"batches": "mixed"},
        "training": {"max_steps": steps, "batch_size": BATCH, "learning_rate": rate, "precision": "bf16"},
        "evaluation": {"max_rows": 400 if share == 1 else 100},
        "seed": seed,
    }
    return recipe_from(tree)


@dataclass(frozen=True)
class Table:
    """The runs of the table, made as they are asked for."""

    out: Path
    data: Path
    max_rows: int

    def screened(self, name: str, rate: float) -> RunFolder:
        """One seed, a quarter of the steps."""
        made = recipe(ROWS[name], self.max_rows, SEEDS[0], rate, SHARE)
        return train(made, self.out / "screen" / f"{name}_{rate:g}", data_dir=self.data, resume=True)

    def rate(self, name: str) -> float:
        """The learning rate whose screening run has the best mean on val."""
        return max(RATES, key=lambda rate: scores(self.screened(name, rate).path)["val"]["mean"])

    def final(self, name: str, seed: int) -> RunFolder:
        made = recipe(ROWS[name], self.max_rows, seed, self.rate(name))
        return train(made, self.out / f"{name}_{seed}", data_dir=self.data, resume=True)


def scores(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return found


@cache
def layers() -> list[lc.LayerSpec]:
    """Those of MiniLM that are adapted."""
    plain = recipe(ROWS["lora"], BATCH, 0, RATES[0])
    base, _ = load_plain(plain, plain.tasks.chosen())
    return lc.target_layers(base)


def parameters(row: Row, run: Path | None = None) -> float:
    """Trainable parameters, without heads, over those of the budget; of a run, as its calibration has made them."""
    target = lc.count_parameters("lora", layers(), options={"r": BUDGET}).total
    saved = None if run is None or row.method.startswith("peft") or row.mode == "single" else run / "adapter"
    options = row.options if saved is None else lc.LorachordConfig.from_pretrained(str(saved)).options
    return lc.count_parameters(row.method, layers(), num_tasks=len(TASKS), options=options).total / target


def lines(table: Table) -> Iterator[str]:
    """The table as Markdown, of the rows whose runs are all there; each beside `lora` of the same seeds."""
    yield f"| method | parameters | rate | {' | '.join(TASKS)} | mean | against lora, 95 % | smallest visible |"
    yield f"|---|---|---|{'---|' * len(TASKS)}---|---|---|"
    done = [name for name in ROWS if all((table.out / f"{name}_{seed}" / "metrics.json").is_file() for seed in SEEDS)]
    for name in done:
        runs = [table.out / f"{name}_{seed}" for seed in SEEDS]
        own = [scores(run)["dev"] for run in runs]
        cells = [f"{parameters(ROWS[name], runs[0]):.3f}", f"{table.rate(name):g}"]
        cells += [f"{fmean(seed['tasks'][task]['score'] for seed in own):.3f}" for task in TASKS]
        cells.append(f"{fmean(seed['mean'] for seed in own):.3f}")
        if name != "lora" and "lora" in done:
            plain = [open_run(table.out / f"lora_{seed}") for seed in SEEDS]
            mean = next(row for row in compare(plain, [open_run(run) for run in runs]) if row.task == "mean")
            mark = " *" if mean.is_significant else ""
            cells += [f"{mean.difference:+.3f} ± {mean.half_width:.3f}{mark}", f"{mean.smallest:.3f}"]
        else:
            cells += ["", ""]
        yield f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with a folder of files per task")
    parser.add_argument("--out", type=Path, required=True, help="where the runs are kept")
    parser.add_argument("--methods", nargs="+", default=list(ROWS), choices=ROWS, metavar="METHOD", help="default: all")
    parser.add_argument("--rows", type=int, default=1000, help="of each task's training data; default: 1000")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs side by side; default: one per core")
    chosen = parser.parse_args()
    for name, row in ROWS.items():
        # What `allot` has depends on how many layers it splits.
        if row.method != "allot" and abs(parameters(row) - 1) > NEAR:
            raise SystemExit(f"{name} has {parameters(row):.3f} of the parameters of LoRA of rank {BUDGET}.")
    table = Table(chosen.out, chosen.data, chosen.rows)
    threads = max(1, (os.cpu_count() or 1) // chosen.jobs)
    names, rates = zip(*product(chosen.methods, RATES), strict=True)
    # All methods with one seed before any with the next: a table of fewer seeds is there early.
    seeds, finals = zip(*product(SEEDS, chosen.methods), strict=True)
    with ProcessPoolExecutor(chosen.jobs, get_context("spawn"), None, torch.set_num_threads, (threads,)) as processes:
        list(processes.map(table.screened, names, rates))
        list(processes.map(table.final, finals, seeds))
    print("\n".join(lines(table)))


if __name__ == "__main__":
    main()
