"""What ThanoRA costs beside a LoRA: its frozen start, and its penalty.

    python benchmarks/thanora.py [--quick] [--json]

Eight tasks, r 16, on the models and batches of `step_time.py`. Every row is the ratio of two training steps measured
side by side.

- `penalty`: with the subspace penalty on A (the default), over the same without it: at most 1.03; and on both factors.
- `start`: with the frozen start (`init: svd`), over `init: kaiming`, whose rank is the smaller by the start's.
- `step`: the whole, over PEFT's LoRA of as many rows in A. At most 1.10.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from harness import Options, Result, interleave, parse_options, report
from workload import Workload, adapters_of

# isort: split
import torch
from peft import PeftModel, get_peft_model

import lorachord as lc

TASKS = [f"task {index}" for index in range(8)]


def thanora(work: Workload, **options: Any) -> PeftModel:
    """With a random start: what it costs does not depend on where it starts."""
    config = lc.LorachordConfig.build("thanora", tasks=TASKS, r=16, **options)
    model = get_peft_model(work.build(), config)
    assert isinstance(model, PeftModel)
    return model


def benchmark(work: Workload) -> Iterator[Result]:
    models = {
        "svd": thanora(work),
        "svd, both": thanora(work, side="both"),
        "svd, no penalty": thanora(work, spr=0.0),
        "kaiming, no penalty": thanora(work, spr=0.0, init="kaiming"),
    }
    width = len(adapters_of(models["svd"])[0].down_weight())
    models[f"PEFT LoRA r {width}"] = lc.attach(work.build(), "peft_lora", r=width)
    rounds = interleave({name: work.step_of(model) for name, model in models.items()}, num_pairs=21)
    yield Result("penalty: svd / svd, no penalty", rounds.ratio("svd", "svd, no penalty"), bound=1.03)
    yield Result("penalty: svd, both / svd, no penalty", rounds.ratio("svd, both", "svd, no penalty"))
    yield Result("start: svd / kaiming, no penalty", rounds.ratio("svd, no penalty", "kaiming, no penalty"))
    yield Result(f"step: svd / PEFT LoRA r {width}", rounds.ratio("svd", f"PEFT LoRA r {width}"), bound=1.10)


def main() -> int:
    options: Options = parse_options(__doc__)
    torch.set_num_threads(2)
    workloads = (Workload(name, options.quick) for name in ("llama", "minilm"))
    rows = (replace(row, case=f"{work.name} {row.case}") for work in workloads for row in benchmark(work))
    return report(rows, options)


if __name__ == "__main__":
    raise SystemExit(main())
