"""Scores of fusions whose task vectors came over a noisy channel, against the signal-to-noise ratio.

    python benchmarks/noise.py RUN [RUN ...] --protect layer.0 [--kind leading] [--out noise.png] [--json]

The runs are finished ones, as `lorachord fuse` takes them. For each ratio the noisy vectors are summed with one lambda,
with and without the protected layers (left to the base), and, with `--shots`, realigned on as many labelled examples of
each task from val. Scored on dev; the mean over tasks is printed, and drawn where `--out` is given (which needs
`lorachord[plots]`).
"""

from __future__ import annotations

import argparse
import json

from lorachord.fusion import RMTLLMF, Merged, TaskVectors, load_task_vectors, merge_vectors, with_noise
from lorachord.fusion.arithmetic import task_arithmetic
from lorachord.messages import table
from lorachord.runs.adapters import Tasks, find, folders, load_base, load_tasks
from lorachord.runs.fusion_report import How, task_batches
from lorachord.runs.scores import report, score_task
from lorachord.training.scoring import predict


def mean_score(merged: Merged, tasks: Tasks, how: How) -> float:
    assert tasks.data is not None
    assert tasks.kind is not None
    rows = tasks.data.split(how.split, how.max_rows, tasks.seed)
    scored = {}
    with merged.model() as model:
        for index, task in enumerate(tasks.data.tasks):
            scored[task.name] = score_task(task, predict(model, tasks.kind, rows[index], index))
    return float(report(scored)["mean"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapters", nargs="+", metavar="RUN")
    parser.add_argument("--protect", nargs="+", required=True, metavar="LAYER")
    parser.add_argument("--kind", default="gaussian", help="gaussian (default) or leading")
    parser.add_argument("--decibels", nargs="+", type=float, default=[-10, -5, 0, 5, 10, 20])
    parser.add_argument("--scale", type=float, default=0.3, help="lambda; default: .3")
    parser.add_argument("--shots", type=int, default=0, help="labelled examples of each task; default: no realignment")
    parser.add_argument("--steps", type=int, default=100, help="of realignment; default: 100")
    parser.add_argument("--max-rows", type=int, default=512, help="of dev, of each task; default: 512")
    parser.add_argument("--base", metavar="MODEL")
    parser.add_argument("--recipe", metavar="YAML")
    parser.add_argument("--data", metavar="DIR")
    parser.add_argument("--out", metavar="PNG", help="draw the curves")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    how = How(max_rows=chosen.max_rows, shots=max(1, chosen.shots))
    given = find(chosen.adapters, chosen.recipe)
    base, tokenizer, part = load_base(given, chosen.base)
    vectors, tasks = load_task_vectors(base, folders(given)), load_tasks(given, tokenizer, part, chosen.data)
    if tasks.data is None:
        raise SystemExit("Nothing says what the tasks are: give runs, or --recipe.")
    examples = task_batches(vectors, tasks, how, labelled=True) if chosen.shots else {}

    def ways(noisy: TaskVectors) -> dict[str, Merged]:
        kept = noisy.without(chosen.protect)
        found = {"plain": task_arithmetic(noisy, chosen.scale), "protected": task_arithmetic(kept, chosen.scale)}
        if chosen.shots:
            method = RMTLLMF(start=chosen.scale, steps=chosen.steps)
            found["realigned"] = merge_vectors(noisy, method, examples)
            found["protected, realigned"] = merge_vectors(kept, method, examples)
        return found

    scores: dict[str, list[float]] = {}
    for decibels in chosen.decibels:
        for name, merged in ways(with_noise(vectors, decibels, chosen.kind)).items():
            scores.setdefault(name, []).append(mean_score(merged, tasks, how))
    clean = {name: mean_score(merged, tasks, how) for name, merged in ways(vectors).items()}
    if chosen.json:
        print(json.dumps({"decibels": chosen.decibels, "scores": scores, "clean": clean}, indent=2))
    else:
        head = [f"{chosen.kind}, dB", *(f"{decibels:g}" for decibels in chosen.decibels), "no noise"]
        lines = [[name, *(f"{value:.3f}" for value in line), f"{clean[name]:.3f}"] for name, line in scores.items()]
        print(table([head, *lines]))
    if chosen.out:
        from lorachord.fusion.plots import plot_noise

        plot_noise(chosen.decibels, scores, chosen.out)


if __name__ == "__main__":
    main()
