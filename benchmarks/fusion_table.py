"""The table of fusions of docs/findings.md, as Markdown: every method, beside single-task runs and joint training.

    for seed in 0 1 2; do
      lorachord train recipes/glue_minilm.yaml --set mode=single --set seed=$seed --data DATA --out runs/single_$seed
      lorachord train recipes/glue_minilm.yaml --set seed=$seed --data DATA --out runs/joint_$seed
    done
    python benchmarks/fusion_table.py --single runs/single_* --joint runs/joint_* --out runs/fusion

Each seed's single runs are fused by each method into `OUT/METHOD_SEED` (fusions that are there already are read and not
made again). A cell is the mean over seeds, and for the mean over tasks half the width of its 95 % interval. Regressions
are left out of all rows by `--skip`: entropy has no meaning for them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t as student

from lorachord.runs.fuse import fuse_adapters, make_method
from lorachord.runs.fusion_report import DISTANCE, SWEEP, XI, How
from lorachord.runs.use import open_run

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "ties": ("ties", {}),
    "dare": ("dare", {}),
    "adamerging (task)": ("adamerging", {"granularity": "task"}),
    "adamerging (layer)": ("adamerging", {}),
    "adamerging++ (layer)": ("adamerging", {"density": 0.2}),
    "concrete task arithmetic": ("concrete", {"granularity": "fixed"}),
    "concrete adamerging": ("concrete", {}),
    "collapse": ("collapse", {"measure": False}),
    "r_mtllmf": ("r_mtllmf", {}),
}
"""By the name of the row: the method and its options."""
Scores = Mapping[str, float]


def fused(runs: Path, tasks: Sequence[str], row: str, out: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """What `fusion.json` of one fusion holds."""
    if not (out / "fusion.json").is_file():
        name, options = METHODS[row]
        steps = {"steps": arguments.steps} if arguments.steps and "steps" in make_method(name, {}).to_dict() else {}
        # What all methods are compared with is scored once.
        first = row == arguments.methods[0]
        how = How(max_rows=arguments.max_rows, rank=arguments.rank, split=arguments.split, beside=first)
        folders = [f"{task}={runs}" for task in tasks]
        fuse_adapters(folders, out, make_method(name, {**options, **steps}), data_dir=arguments.data, how=how)
    found: dict[str, Any] = json.loads((out / "fusion.json").read_text())
    return found


def scores_of(report: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, float]:
    own = {task: float(report["tasks"][task]["score"]) for task in tasks}
    return {**own, "mean": fmean(own.values()), "worst": min(own.values())}


def line(name: str, seeds: Sequence[Scores], sums: Sequence[Sequence[float]]) -> str:
    """One row of the table: means over seeds."""
    cells = []
    for column in seeds[0]:
        values = [scores[column] for scores in seeds]
        cell = f"{fmean(values):.3f}"
        if column == "mean" and len(values) > 1:
            half = student.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
            cell += f" ± {half:.3f}"
        cells.append(cell)
    cells += [f"{fmean(values):.3f}" if values else "" for values in sums]
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--single", nargs="+", required=True, metavar="RUN", help="runs of mode single, one a seed")
    parser.add_argument("--joint", nargs="*", default=[], metavar="RUN", help="joint runs to print beside, one a seed")
    parser.add_argument("--out", required=True, metavar="DIR", help="where the fusions go")
    parser.add_argument("--data", metavar="DIR", help="where the data lie now")
    parser.add_argument("--skip", nargs="*", default=[], metavar="TASK", help="tasks to leave out, such as regressions")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS), metavar="ROW")
    parser.add_argument("--steps", type=int, help="of adapting; default: each method's own")
    parser.add_argument("--max-rows", type=int, default=512, help="examples of each task to adapt on; default: 512")
    parser.add_argument("--rank", type=int, help="of the fused LoRA; default: that of all adapters together")
    parser.add_argument("--split", default="dev", help="default: dev")
    chosen = parser.parse_args()
    singles = [open_run(path) for path in chosen.single]
    tasks = [task.name for task in singles[0].recipe.tasks.chosen() if task.name not in chosen.skip]
    rows: dict[str, list[Scores]] = {}
    sums: dict[str, dict[str, list[float]]] = {}
    for index, run in enumerate(singles):
        for row in chosen.methods:
            label = f"{row.replace(' ', '_').replace('(', '').replace(')', '')}_{index}"
            found = fused(run.path, tasks, row, Path(chosen.out, label), chosen)["scores"]
            common = ["individual", "average", *(f"lambda {scale:g}" for scale in SWEEP)]
            named = {
                row: found["fused"],
                **({name: found[name] for name in common} if row == chosen.methods[0] else {}),
            }
            for name, report in named.items():
                rows.setdefault(name, []).append(scores_of(report, tasks))
                for key in (XI, DISTANCE):
                    own = sums.setdefault(name, {}).setdefault(key, [])
                    if report.get(key):
                        own.append(sum(report[key].values()))
    for path in chosen.joint:
        joint = open_run(path)
        rows.setdefault("joint training", []).append(scores_of(joint.metrics[chosen.split], tasks))
    print(f"| | {' | '.join(tasks)} | mean | worst | xi | distance from own adapters |")
    print(f"|---|{'---|' * (len(tasks) + 4)}")
    first = ["individual", "joint training", "average", *(f"lambda {scale:g}" for scale in SWEEP)]
    for name in [*(name for name in first if name in rows), *chosen.methods]:
        print(line(name, rows[name], [sums.get(name, {}).get(key, []) for key in (XI, DISTANCE)]))


if __name__ == "__main__":
    main()
