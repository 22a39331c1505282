"""Step time and saved activations of every method: against PEFT's LoRA, loops over experts, and a frozen model.

    python benchmarks/step_time.py [--quick] [--json] [--device cuda]

Two random models, fed by embeddings that require gradients, so that even a frozen one has something to backpropagate
to: `llama` (4 blocks of 384 features) and `minilm` (the architecture of MiniLM-L6: 6 blocks of 384); with `--quick` one
block of each. Batches of 16 x 64 tokens (with `--quick` 16 x 48), sorted by task; adapters of rank 8 on all linears,
four tasks. HydraLoRA and MoSLD have 8 experts in every layer; all else is at the methods' defaults. Every row is a
ratio of two things measured side by side: the mean over builds of the median over rounds, with its standard error;
where the tensors of a model come to lie in memory makes up to .1 of a ratio, in either direction. There are four
builds, and up to 24 while a mean is within two standard errors of its bound (with `--quick` one, of few rounds: it
shows that all runs, and hardly more).

As in training, a model has a process of its own, a new one in each build, and a step that is timed follows one of its
own (neither with `--quick`). What the allocator does for a model depends on what others had from it before, which makes
up to .05 of a ratio; and after another model's step, the caches hold what is not its own, which costs methods of many
small operations more than others. So do neighbours on a shared processor, which push an operation's code out of its
caches between one layer and the next.

With `--device cuda`, models as wide as those people tune, in bfloat16 under its autocast: `llama_1b` (8 blocks of 2,048
features) on 16 x 256 tokens, where a step takes as long as it takes to launch its kernels, and `llama_8b` (3 blocks of
4,096) on 16 x 1,024, where it takes as long as these run. One build in one process, for nothing there hangs on
memory's layout.

- `step`: a training step (tasks named, forward, penalty, backward, AdamW, zero_grad) over that of PEFT's LoRA whose
  rank is the wider of the stacked factors. At most 1.10. Without a bound: MoELoRA whose contrastive loss looks at 64
  tokens of a sequence and not, as by default, at 16: a cost that does not grow with the layers' width.
- `loop`: a training step of a loop over 8 experts (`loops.py`), in the style of the published codes, over ours. At
  least 2. That both give the same outputs and input gradients is checked first. HydraLoRA's release applies A anew for
  each expert, and so do the loops here; `A once` shows what is left without that. MTL-LoRA's release has no loop (it
  mixes the up-projections, and copies the mixture for each sample): `released`.
- `saved`: bytes that a forward pass keeps for the backward pass, parameters not counted; ours over the other.
- `calibration`: what comes before training with 500 samples a task, as a number of steps of PEFT's LoRA, timed once:
  ThanoRA's ranks and start, Allot's warm-up of 60 steps, MoR1E's embeddings and clusters. On the CPU alone, and not
  with `--quick`.
- `limit`: forward and backward alone, over those of the frozen model to its inputs. Nothing can be below 1; the target
  is 1.10.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import torch

import lorachord as lc
import workload
from harness import Options, Result, Step, Took, interleave, mean_and_error, parser_of, report, undecided
from loops import LOOPS
from outside import started
from workload import CASES, NUM_SAMPLES, TASKS, Kind, Workload, saved_bytes, width_of

WITHOUT_BOUND = ("moelora (64 tokens)",)
BUILDS = 4, 24
"""The fewest and the most of each pair."""


def steps_of(work: Workload, kinds: Mapping[str, Kind], optimise: bool, stack: ExitStack) -> dict[str, Step]:
    """Of each model, a step: where it is measured well, of a process of its own, which `stack` ends."""
    if work.quick or work.half:
        return {name: work.step_of(work.model(kind), optimise=optimise) for name, kind in kinds.items()}
    script = Path(workload.__file__)
    # They import what they need while others start.
    processes = {name: stack.enter_context(started(Path(sys.executable), script)) for name in kinds}
    for name, process in processes.items():
        process.ask(name, {"name": work.name, "quick": work.quick, "kind": kinds[name], "optimise": optimise})
    return {name: lambda name=name: Took(processes[name].ask(name)["seconds"]) for name in kinds}


def timed(
    work: Workload,
    kinds: Mapping[str, Kind],
    bounds: Mapping[tuple[str, str], float | None],
    *,
    optimise: bool = True,
) -> dict[tuple[str, str], list[float]]:
    """Of each pair of a case and its baseline, the ratio in every build that was made for it.

    Args:
        work: the workload.
        kinds: the models by name.
        bounds: the pairs, and the bound of each.
        optimise: whether a step is a whole one.
    """
    fewest, most, num_pairs, num_untimed = 1, 1, 6 if work.half else 5, 0
    if not (work.half or work.quick):
        (fewest, most), num_pairs, num_untimed = BUILDS, 3, 1
    ratios: dict[tuple[str, str], list[float]] = {pair: [] for pair in bounds}
    pairs = list(bounds)
    for seed in range(most):
        names = list(dict.fromkeys(name for pair in pairs for name in pair))
        Random(seed).shuffle(names)
        with ExitStack() as stack:
            steps = steps_of(work, {name: kinds[name] for name in names}, optimise, stack)
            # The first of the untimed steps warms up.
            counts = {"num_pairs": num_pairs, "num_warmup": 1 - num_untimed, "num_untimed": num_untimed}
            rounds = interleave(steps, **counts, seed=seed)
        for pair in pairs:
            ratios[pair].append(rounds.ratio(*pair))
        if seed + 1 >= fewest:
            pairs = [pair for pair in pairs if undecided(ratios[pair], bounds[pair])]
        if not pairs:
            break
    return ratios


def beside_peft(work: Workload, r: int, cases: Sequence[str]) -> Iterator[Result]:
    """The cases whose factors are r wide, which take turns with one LoRA of PEFT's."""
    against = f"PEFT LoRA r {r}"
    kinds: dict[str, Kind] = {case: ("ours", {"case": case}) for case in cases}
    kinds[against] = "peft_lora", {"r": r}
    bounds = {(case, against): None if case in WITHOUT_BOUND else 1.10 for case in cases}
    ratios = timed(work, kinds, bounds)
    sizes = {name: saved_bytes(work, work.model(kind)) for name, kind in kinds.items()}
    for (case, _), bound in bounds.items():
        value, error = mean_and_error(ratios[case, against])
        yield Result(f"step: {case} / {against}", value, bound=bound, error=error)
        yield Result(f"saved: {case} / {against}", sizes[case] / sizes[against])


def beside_loops(work: Workload, case: str) -> Iterator[Result]:
    """A case's loops, which take turns with it."""
    kinds: dict[str, Kind] = {
        row: ("loop", {"case": case, "row": row})
        for row in LOOPS[case]
        if not work.quick or (row, case, work.name) == ("loop", "hydralora", "minilm")
    }
    if not kinds:
        return
    ours, loops = work.ours(case), {row: work.model(kind) for row, kind in kinds.items()}
    for loop in loops.values():
        work.require_same(ours, loop)
    sizes = {row: saved_bytes(work, ours) / saved_bytes(work, loop) for row, loop in loops.items()}
    bounds = {(row, case): 2.0 if row == "loop" else None for row in kinds}
    kinds[case] = "ours", {"case": case}
    ratios = timed(work, kinds, bounds)
    for (row, _), bound in bounds.items():
        value, error = mean_and_error(ratios[row, case])
        yield Result(f"{row} / {case}", value, bound=bound, better="higher", error=error)
        yield Result(f"saved: {case} / {row}", sizes[row])


def calibrations(work: Workload) -> Iterator[Result]:
    """What comes before training, in steps of PEFT's LoRA."""
    inputs = {task: work.batches(500, NUM_SAMPLES) for task in TASKS}
    # Two of each task are as large as a batch of training.
    halves = {task: work.batches(500, NUM_SAMPLES // (2 * len(TASKS))) for task in TASKS}
    clustered = lc.attach(work.build(), "mor1e", tasks=TASKS)
    calls: dict[str, Step] = {
        "thanora": partial(lc.calibrate, work.build(), "thanora", tasks=TASKS, batches=inputs),
        "allot": partial(lc.calibrate, work.build(), "allot", tasks=TASKS, batches=halves, loss=work.loss_of),
        "mor1e": partial(lc.fit_intuition, clustered, [batch for own in inputs.values() for batch in own]),
    }
    step = work.step_of(work.peft_lora(8))
    ten: dict[str, Step] = {"ten steps": lambda: [step() for _ in range(10)]}
    rounds = interleave(ten | calls, num_pairs=1, num_warmup=0)
    for method in calls:
        yield Result(f"calibration: {method}", 10 * rounds.ratio(method, "ten steps"), unit="steps")


def limits(work: Workload) -> Iterator[Result]:
    kinds: dict[str, Kind] = {
        "frozen": ("frozen", {}),
        "PEFT LoRA r 8": ("peft_lora", {"r": 8}),
        "lora": ("ours", {"case": "lora"}),
    }
    bounds = {(name, "frozen"): None for name in kinds if name != "frozen"}
    for (name, _), found in timed(work, kinds, bounds, optimise=False).items():
        value, error = mean_and_error(found)
        yield Result(f"limit: {name} / frozen", value, error=error)


def benchmark(work: Workload) -> Iterator[Result]:
    # A quick run leaves out what has no bound or hardly differs from another, and all loops but one.
    left_out = (*WITHOUT_BOUND, "mixlora (frozen hash)", "mtl_lora (8 ups)", "mode (8 experts)") if work.quick else ()
    cases_by_width: dict[int, list[str]] = {}
    for case in CASES:
        if case not in left_out:
            cases_by_width.setdefault(width_of(work.ours(case)), []).append(case)
    for r, cases in sorted(cases_by_width.items()):
        yield from beside_peft(work, r, cases)
    for case in LOOPS:
        if case not in left_out:
            yield from beside_loops(work, case)
    if not work.quick and not work.half:
        yield from calibrations(work)
    yield from limits(work)


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to train; default cpu")
    arguments = vars(parser.parse_args())
    device = arguments.pop("device")
    options = Options(**arguments)
    torch.set_num_threads(2)
    names = ("llama", "minilm") if device == "cpu" else ("llama_1b", "llama_8b")
    workloads = (Workload(name, options.quick, device) for name in names)
    rows = (replace(row, case=f"{work.name} {row.case}") for work in workloads for row in benchmark(work))
    return report(rows, options)


if __name__ == "__main__":
    raise SystemExit(main())
