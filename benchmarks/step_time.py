"""Step time and saved activations of every method: against PEFT's LoRA, loops over experts, and a frozen model.

    python benchmarks/step_time.py [--quick] [--json] [--device cuda]

Two random models: `llama` (4 blocks of 384 features) and `minilm` (the architecture of MiniLM-L6, 6 blocks of 384).
Batches of 16 x 64 tokens, sorted by task; adapters of rank 8 on all linears, four tasks. HydraLoRA and MoSLD have 8
experts in every layer; all else is at the methods' defaults. `--quick` takes one block of each and 16 x 48 tokens.

Every row is a ratio of two steps measured side by side: the median over builds of the median over rounds, with its
standard error. There are five builds, each in a process of its own, and up to 25 while a median is within two standard
errors of its bound. A timed step follows an untimed one of its own, as in training. `--quick` has one build of few
rounds: it shows that all methods run, and roughly how fast. What moves a ratio by up to 0.1x, and why each build has
its own process, is in `docs/kernels.md`.

With `--device cuda` the models are as wide as those people tune, in bfloat16: `llama_1b` (8 blocks of 2,048 features)
on 16 x 256 tokens, and `llama_8b` (3 blocks of 4,096) on 16 x 1,024. One build.

- `step`: a training step (tasks named, forward, penalty, backward, AdamW, zero_grad) over that of PEFT's LoRA whose
  rank is the wider of the stacked factors. At most 1.20x for a method with a router or a loss of its own, 1.10x
  otherwise; a miss by less than the standard error is met. Without a bound: MoELoRA whose contrastive loss looks at 64
  tokens of a sequence, four times its default.
- `loop`: a training step of a loop over 8 experts (`loops.py`), in the style of the published codes, over ours. At
  least 2x. The loops' outputs and input gradients are compared with ours first. HydraLoRA's release applies A anew for
  each expert, and so do the loops here; `A once` leaves that out. `released` is MTL-LoRA's release, which has no loop.
- `saved`: bytes that a forward pass keeps for the backward pass, parameters not counted; ours over the other.
- `calibration`: the work before training with 500 samples a task, in steps of PEFT's LoRA, timed once. On the CPU
  alone, and not with `--quick`.
- `limit`: forward and backward alone, over those of the frozen model to its inputs.
- `compiled`, and nothing else, with `--compile`: a step of ours through compiled blocks over ours as it is, and over
  PEFT's LoRA through compiled blocks. One build; `--quick` has `lora` on one model alone: compilers take time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from random import Random
from typing import Any

import torch
from torch import nn

import lorachord as lc
from harness import Options, Result, Step, interleave, median_and_error, parser_of, report, undecided
from loops import LOOPS
from workload import NUM_SAMPLES, TASKS, Workload, adapters_of, saved_bytes

BUILDS = 5, 25
"""The fewest and the most of each pair."""
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {}),
    "multilora": ("multilora", {}),
    "mtl_lora": ("mtl_lora", {}),
    "mtl_lora (8 ups)": ("mtl_lora", {"num_ups": 8}),
    "hydralora": ("hydralora", {"num_experts": 8}),
    "mosld": ("mosld", {"num_experts": 8}),
    "mode": ("mode", {}),
    "mode (8 experts)": ("mode", {"num_experts": 8}),
    "malora": ("malora", {}),
    "moelora (no contrast)": ("moelora", {"contrastive": 0.0}),
    "moelora": ("moelora", {}),
    "moelora (64 tokens)": ("moelora", {"contrastive_tokens": 64}),
    "mixlora": ("mixlora", {}),
    "mixlora (frozen hash)": ("mixlora", {"selection": "frozen_hash"}),
    "mor1e": ("mor1e", {}),
    "thanora": ("thanora", {"init": "kaiming", "allocation": "uniform"}),
    "allot (all split)": ("allot", {"choose": "all"}),
}
QUICK_COMPILED = ("lora",)
WITHOUT_BOUND = ("moelora (64 tokens)",)
ROUTED = ("hydralora", "mosld", "mode", "malora", "moelora", "mixlora", "mor1e", "thanora")
"""Methods with a router or a loss of their own."""
NUM_THREADS = 2
Pair = tuple[str, str]
Makers = Mapping[str, Callable[[], nn.Module]]


def width_of(model: nn.Module) -> int:
    """The rank of the plain LoRA that an adapted model is compared with."""
    adapter = adapters_of(model)[0]
    return max(len(adapter.down_weight()), adapter.up_weight().shape[1])


def timed(
    work: Workload, makers: Makers, bounds: Mapping[Pair, float | None], *, optimise: bool = True
) -> dict[Pair, list[float]]:
    """Of each pair of a case and its baseline, the ratio in every build that was made for it.

    Args:
        work: the workload.
        makers: how to build what is timed.
        bounds: the pairs, and the bound of each.
        optimise: whether a step is a whole one.
    """
    if work.half or work.quick:
        found = ratios_of_build(work, makers, list(bounds), optimise, num_pairs=6 if work.half else 5, num_untimed=0)
        return {pair: [ratio] for pair, ratio in found.items()}
    ratios: dict[Pair, list[float]] = {pair: [] for pair in bounds}
    pairs, (fewest, most) = list(bounds), BUILDS
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as processes:
        for seed in range(most):
            built = processes.submit(ratios_of_build, work, makers, pairs, optimise, seed=seed)
            for pair, ratio in built.result().items():
                ratios[pair].append(ratio)
            if seed + 1 >= fewest:
                pairs = [pair for pair in pairs if undecided(ratios[pair], bounds[pair])]
            if not pairs:
                break
    return ratios


def ratios_of_build(
    work: Workload,
    makers: Makers,
    pairs: Sequence[Pair],
    optimise: bool,
    *,
    num_pairs: int = 5,
    num_untimed: int = 1,
    seed: int = 0,
) -> dict[Pair, float]:
    """The ratio of each pair, of one build of what they need."""
    torch.set_num_threads(NUM_THREADS)
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    # What is built last comes to lie in other memory than what is built first.
    Random(seed).shuffle(names)
    steps = {name: work.step_of(makers[name](), optimise=optimise) for name in names}
    rounds = interleave(steps, num_pairs=num_pairs, num_untimed=num_untimed, seed=seed)
    return {pair: rounds.ratio(*pair) for pair in pairs}


def peft_lora(work: Workload, r: int) -> nn.Module:
    return lc.attach(work.build(), "peft_lora", r=r)


def frozen(work: Workload) -> nn.Module:
    return work.build().requires_grad_(False)


def bound_of(case: str) -> float | None:
    if case in WITHOUT_BOUND:
        return None
    return 1.20 if CASES[case][0] in ROUTED else 1.10


def beside_peft(work: Workload, r: int, cases: Sequence[str]) -> Iterator[Result]:
    """The cases whose factors are r wide, which take turns with one LoRA of PEFT's."""
    against = f"PEFT LoRA r {r}"
    makers: dict[str, Callable[[], nn.Module]] = {case: partial(work.ours, *CASES[case]) for case in cases}
    makers[against] = partial(peft_lora, work, r)
    bounds = {(case, against): bound_of(case) for case in cases}
    ratios = timed(work, makers, bounds)
    sizes = {name: saved_bytes(work, make()) for name, make in makers.items()}
    for (case, _), bound in bounds.items():
        value, error = median_and_error(ratios[case, against])
        yield Result(f"step: {case} / {against}", value, bound=bound, error=error)
        yield Result(f"saved: {case} / {against}", sizes[case] / sizes[against])


def beside_loops(work: Workload, case: str) -> Iterator[Result]:
    """A case's loops, which take turns with it."""
    makers: dict[str, Callable[[], nn.Module]] = {
        name: partial(work.loop, layer_type, *CASES[case])
        for name, layer_type in LOOPS[case].items()
        if not work.quick or (name, case, work.name) == ("loop", "hydralora", "minilm")
    }
    if not makers:
        return
    bounds = {(name, case): 2.0 if name == "loop" else None for name in makers}
    makers[case] = partial(work.ours, *CASES[case])
    ratios = timed(work, makers, bounds)
    size = saved_bytes(work, makers[case]())
    for (name, _), bound in bounds.items():
        value, error = median_and_error(ratios[name, case])
        yield Result(f"{name} / {case}", value, bound=bound, better="higher", error=error)
        yield Result(f"saved: {case} / {name}", size / saved_bytes(work, makers[name]()))


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
    step = work.step_of(peft_lora(work, 8))
    ten: dict[str, Step] = {"ten steps": lambda: [step() for _ in range(10)]}
    rounds = interleave(ten | calls, num_pairs=1, num_warmup=0)
    for method in calls:
        yield Result(f"calibration: {method}", 10 * rounds.ratio(method, "ten steps"), unit="steps")


def limits(work: Workload) -> Iterator[Result]:
    makers: dict[str, Callable[[], nn.Module]] = {
        "frozen": partial(frozen, work),
        "PEFT LoRA r 8": partial(peft_lora, work, 8),
        "lora": partial(work.ours, *CASES["lora"]),
    }
    bounds = {(name, "frozen"): None for name in [*makers][1:]}
    for (name, _), found in timed(work, makers, bounds, optimise=False).items():
        value, error = median_and_error(found)
        yield Result(f"limit: {name} / frozen", value, error=error)


def compiled(work: Workload) -> Iterator[Result]:
    for case in QUICK_COMPILED if work.quick else CASES:
        model = work.ours(*CASES[case])
        against = f"PEFT LoRA r {width_of(model)}"
        steps = {
            "compiled": work.step_of(model, compiled=True),
            "plain": work.step_of(work.ours(*CASES[case])),
            against: work.step_of(peft_lora(work, width_of(model)), compiled=True),
        }
        rounds = interleave(steps, num_pairs=3 if work.quick else 21, num_warmup=3)
        for other, words in (("plain", f"{case}, compiled / plain"), (against, f"{case} / {against}, both compiled")):
            value, error = rounds.ratio_and_error("compiled", other)
            yield Result(f"compiled: {words}", value, error=error)


def benchmark(work: Workload) -> Iterator[Result]:
    # A quick run leaves out what has no bound or hardly differs from another, and all loops but one.
    left_out = (*WITHOUT_BOUND, "mixlora (frozen hash)", "mtl_lora (8 ups)", "mode (8 experts)") if work.quick else ()
    cases_by_width: dict[int, list[str]] = {}
    for case in CASES:
        if case not in left_out:
            cases_by_width.setdefault(width_of(work.ours(*CASES[case])), []).append(case)
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
    parser.add_argument("--compile", action="store_true", help="steps through compiled blocks, and nothing else")
    arguments = vars(parser.parse_args())
    device, rows_of = arguments.pop("device"), compiled if arguments.pop("compile") else benchmark
    options = Options(**arguments)
    torch.set_num_threads(NUM_THREADS)
    names = ("llama", "minilm") if device == "cpu" else ("llama_1b", "llama_8b")
    if options.quick and rows_of is compiled:
        names = names[:1]
    workloads = (Workload(name, options.quick, device) for name in names)
    rows = (replace(row, case=f"{work.name} {row.case}") for work in workloads for row in rows_of(work))
    return report(rows, options)


if __name__ == "__main__":
    raise SystemExit(main())
