"""Training steps on a GPU beside their bounds: small batches of every method, large ones of `lora`, and surgery.

    python benchmarks/gpu_steps.py [--quick] [--json] [--device cpu]

Of a shape as wide as Llama 3.2 1B and 16 x 256 tokens, every method takes at most 1.15x of PEFT's LoRA. Of the width of
Llama 3.1 8B and 16 x 1,024 tokens, `lora` takes at most 1.08x of the frozen model, forward and backward alone. A step
of `mtl_lora` with surgery (`ortho_lora`) takes at most 1.05x of one without.

With `--device cpu` or `--quick` the models are small: that tries the script, and says nothing of a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

import lorachord as lc
from harness import Options, Result, Step, interleave, parser_of, report
from lorachord.surgery.surgeon import Surgeon
from step_time import CASES, frozen, peft_lora, width_of
from workload import Workload

SMALL = [case for case in CASES if case not in ("moelora (64 tokens)", "mixlora (frozen hash)", "mtl_lora (8 ups)")]


def small_batches(work: Workload, num_pairs: int) -> Iterator[Result]:
    for case in SMALL:
        model = work.ours(*CASES[case])
        against = f"PEFT LoRA r {width_of(model)}"
        steps = {case: work.step_of(model), against: work.step_of(peft_lora(work, width_of(model)))}
        value, error = interleave(steps, num_pairs=num_pairs, num_warmup=2).ratio_and_error(case, against)
        yield Result(f"{work.name}: {case} / {against}", value, bound=1.15, error=error)


def large_batches(work: Workload, num_pairs: int) -> Iterator[Result]:
    made = {"lora": work.ours("lora", {}), "frozen": frozen(work)}
    steps = {name: work.step_of(model, optimise=False) for name, model in made.items()}
    value, error = interleave(steps, num_pairs=num_pairs).ratio_and_error("lora", "frozen")
    yield Result(f"{work.name}: lora / frozen", value, bound=1.08, error=error)


def surgery(work: Workload, num_pairs: int) -> Iterator[Result]:
    plain, operated = work.ours("mtl_lora", {}), work.ours("mtl_lora", {})
    surgeon = Surgeon(operated, "ortho_lora")
    trained = [parameter for parameter in operated.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    forward = work.forward_of(operated)

    def step() -> None:
        ((forward() * work.weight_BLV).sum() + lc.penalty(operated)).backward()
        surgeon.operate()
        optimizer.step()
        for leaf in (*trained, work.embeddings_BLD):
            leaf.grad = None

    steps: dict[str, Step] = {"surgery": step, "plain": work.step_of(plain)}
    value, error = interleave(steps, num_pairs=num_pairs).ratio_and_error("surgery", "plain")
    yield Result(f"{work.name}: mtl_lora, surgery / plain", value, bound=1.05, error=error)


def benchmark(options: Options, device: str) -> Iterator[Result]:
    wide = device == "cuda"
    num_pairs = 9 if wide else 2
    small = Workload("llama_1b" if wide else "llama", options.quick, device)
    yield from small_batches(small, num_pairs)
    large = Workload("llama_8b" if wide else "minilm", options.quick, device)
    yield from large_batches(large, num_pairs)
    yield from surgery(large, num_pairs)


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="where to train; default cuda")
    arguments = vars(parser.parse_args())
    device = arguments.pop("device")
    options = Options(**arguments)
    return report(benchmark(options, device), options)


if __name__ == "__main__":
    raise SystemExit(main())
