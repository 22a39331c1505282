"""What watching surgery costs, as a share of a training step, and what surgery itself does between backward and step.

    python benchmarks/watch.py [--quick] [--json]

LoRA of rank 8 on all linears of a random MiniLM (6 blocks of 384 features; one with `--quick`), 16 samples of 64 tokens
of 4 tasks. A step is forward, backward, Ortho-LoRA within every factor, AdamW and zero_grad. All parts are timed inside
the same steps, in seconds of the processor, which other processes do not lengthen; reported are medians of shares.

- `watch, every 10 steps`: writing an operation's arrays, divided by 10. At most 2 % of a step.
- `operate`: collecting the tasks' gradients, their Gramians, the rule and the sums.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import pairwise
from statistics import median
from time import process_time

import torch

from harness import Options, Result, parse_options, report
from lorachord.surgery.surgeon import Surgeon
from lorachord.surgery.watch import Watch
from surgery import RULE, Bench
from workload import minilm

EVERY = 10


def rows(options: Options) -> Iterator[Result]:
    bench = Bench.make(minilm, 4, options.quick)
    model = bench.model()
    surgeon = Surgeon(model, RULE)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)
    seconds: list[float] = []
    shares: dict[str, list[float]] = {"operate": [], "watch": []}
    with tempfile.TemporaryDirectory() as folder:
        watch = Watch(folder, [f"task {index}" for index in range(4)], every=1)
        for step in range(1, 27):
            times = [process_time()]
            bench.losses_by_task(model).sum().backward()
            times.append(process_time())
            operation = surgeon.operate()
            times.append(process_time())
            watch.see(operation, RULE, step)
            times.append(process_time())
            optimizer.step()
            optimizer.zero_grad()
            times.append(process_time())
            backward, operate, seen, rest = (stop - start for start, stop in pairwise(times))
            # The first ones warm up.
            if step > 5:
                whole = backward + operate + rest
                seconds.append(whole)
                shares["operate"].append(operate / whole)
                shares["watch"].append(seen / whole)
    watching, operating = (median(shares[name]) for name in ("watch", "operate"))
    yield Result(f"watch, every {EVERY} steps", 100 * watching / EVERY, unit="%", bound=2.0)
    yield Result("watch, every step", 100 * watching, unit="%")
    yield Result("operate", 100 * operating, unit="%")
    yield Result("a step, of the processor", 1000 * median(seconds), unit="ms")
    yield Result(f"operate, and watch every {EVERY} steps", 100 * (operating + watching / EVERY), unit="%")


def main() -> int:
    options = parse_options(__doc__)
    return report(rows(options), options)


if __name__ == "__main__":
    raise SystemExit(main())
