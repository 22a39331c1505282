"""What gradient rules do where one task dominates: `lab-dominance`, whose losses are weighted 8 : 1, on MiniLM.

Trains with each rule, and with balanced losses, for several k and seeds, and prints, against the plain sum with the
same seeds, the worst task's loss over the steps and how many steps the worst task takes to reach .9. Finished runs are
kept and not made again.

python benchmarks/dominance.py --out runs/dominance --seeds 10
"""

import argparse
import json
import statistics
from pathlib import Path

import numpy as np

from lorachord.runs.paired import interval
from lorachord.runs.recipe import Recipe, recipe_from
from lorachord.runs.train import train

STEPS, EVAL_EVERY, REACHED = 75, 5, 0.9
RULES = {
    "sum": None,
    "ortho_lora": {"rule": "ortho_lora", "granularity": "factor"},
    "pcgrad": {"rule": "ortho_lora", "granularity": "global"},
    "significant": {"rule": "significant", "granularity": "factor"},
    "upgrad": {"rule": "upgrad", "granularity": "global"},
}
BALANCES = {"running_scale": {"name": "running_scale"}}


def recipe(k: float, seed: int, rule: str) -> Recipe:
    tree = {
        "model": {"name": "minilm", "kind": "encoder", "heads": "shared", "max_length": 32},
        "tasks": {"lab": {"name": "lab-dominance", "k": k}},
        "method": {"name": "lora", "r": 1, "alpha": 2.0},
        "mixture": {"every_task": True},
        "training": {
            "max_steps": STEPS,
            "batch_size": 16,
            "learning_rate": 3e-3,
            "log_every": 1,
            "eval_every": EVAL_EVERY,
        },
        "evaluation": {"max_rows": 100},
        "surgery": RULES.get(rule),
        "balance": BALANCES.get(rule),
        "seed": seed,
    }
    return recipe_from(tree)


def measures(folder: Path) -> tuple[float, float]:
    """The mean over the steps of the worst task's loss, and the steps until the worst task's accuracy on val is .9."""
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    losses = [
        max(value for key, value in entry.items() if key.startswith("loss_")) for entry in entries if "loss" in entry
    ]
    reached = [entry["step"] for entry in entries if entry.get("eval_worst", 0) >= REACHED]
    # A run that does not get there counts as one evaluation more than the last.
    return statistics.fmean(losses), min(reached, default=STEPS + EVAL_EVERY)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where the runs are kept")
    parser.add_argument("--seeds", type=int, default=10, help="default: 10")
    parser.add_argument("--k", type=float, nargs="+", default=[0.25, 0.5, 0.75], help="default: .25 .5 .75")
    chosen = parser.parse_args()
    found: dict[tuple[float, str], list[tuple[float, float]]] = {}
    for seed in range(chosen.seeds):
        for k in chosen.k:
            for rule in (*RULES, *BALANCES):
                folder = chosen.out / f"k{k}_{rule}_{seed}"
                train(recipe(k, seed, rule), folder, resume=True)
                found.setdefault((k, rule), []).append(measures(folder))
    print("| k | rule | worst task's loss | against the sum, 95 % | smallest visible | steps to .9 | against the sum |")
    print("|---|---|---|---|---|---|---|")
    for (k, rule), values in found.items():
        plain_S2, own_S2 = np.array(found[k, "sum"]), np.array(values)
        cells = [f"{k:g}", rule]
        for column, form in ((0, ".3f"), (1, ".1f")):
            cells.append(f"{own_S2[:, column].mean():{form}}")
            if rule == "sum":
                cells += ["", ""] if column == 0 else [""]
                continue
            pair_2S = np.stack([plain_S2[:, column], own_S2[:, column]])
            half_width, smallest = interval(pair_2S, sampling=0.0)
            change = float((pair_2S[1] - pair_2S[0]).mean())
            mark = " *" if abs(change) > half_width else ""
            cells.append(f"{change:+{form}} ± {half_width:{form}}{mark}")
            if column == 0:
                cells.append(f"{smallest:{form}}")
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
