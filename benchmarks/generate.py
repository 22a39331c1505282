"""Time of writing and of reading with adapters, beside PEFT's LoRA and its batches of mixed adapters.

    python benchmarks/generate.py [--quick] [--json] [--device cuda]

A random Llama of six blocks of 384 features, and adapters of rank 8 on all linears. Cases take turns in one process.
Every row is the median over rounds of a ratio within the round. `--quick` takes fewer rounds, two routed methods, and
prompts of 128.

- `write`: 24 tokens, greedily, behind 16 prompts of 32. `lora` takes at most 1.02x of PEFT's LoRA; `mtl_lora` with
  eight tasks mixed at most 1.15x of `lora`, and under 0.6x of eight LoRAs of PEFT's mixed by `adapter_names`; a method
  with a router at most 1.5x of `lora`.
- `read`: one pass over prompts of 512 tokens, whose cache is kept, for 1, 8 and 32 requests, as a server has them.

With `--device cuda` the model is as wide as Llama 3.2 1B (8 blocks of 2,048), in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import lorachord as lc
from harness import Options, Result, Step, interleave, parser_of, report

NUM_THREADS = 2
ROWS, PROMPT, WRITTEN, READ = 16, 32, 24, 512
TASKS = tuple("abcdefgh")
ROUTED: dict[str, dict[str, Any]] = {
    "hydralora": {"num_experts": 8},
    "mosld": {"num_experts": 8},
    "mode": {},
    "malora": {},
    "moelora": {},
    "mixlora": {},
    "mor1e": {},
}
QUICK = ("hydralora", "mixlora")
BASE, PEFT, MIXED = "base", "PEFT LoRA", "PEFT, 8 LoRAs mixed"


class Case:
    """A model that writes and reads.

    Args:
        model: of the case.
        tasks: of one sample after another, in turn; none are named where there are none.
        names: of PEFT's adapters, in turn.
    """

    def __init__(self, model: nn.Module, tasks: tuple[str, ...] = (), names: tuple[str, ...] = ()) -> None:
        self.model, self.tasks, self.names = model.eval(), tasks, names

    def _named(self, count: int) -> AbstractContextManager[None]:
        return lc.on_task(self.model, in_turn(self.tasks, count)) if self.tasks else nullcontext()

    def _beside(self, count: int) -> dict[str, Any]:
        return {"adapter_names": in_turn(self.names, count)} if self.names else {}

    @torch.no_grad()
    def write(self, ids_BL: Tensor) -> Tensor:
        with self._named(len(ids_BL)):
            written_BL: Tensor = self.model.generate(  # type: ignore[operator]
                input_ids=ids_BL,
                attention_mask=torch.ones_like(ids_BL),
                max_new_tokens=WRITTEN,
                min_new_tokens=WRITTEN,
                do_sample=False,
                **self._beside(len(ids_BL)),
            )
        return written_BL

    @torch.no_grad()
    def read(self, ids_BL: Tensor) -> None:
        with self._named(len(ids_BL)):
            self.model(input_ids=ids_BL, use_cache=True, logits_to_keep=1, **self._beside(len(ids_BL)))


def in_turn(names: tuple[str, ...], count: int) -> list[str]:
    """Those of samples that are not sorted by task, as requests arrive."""
    return [names[index % len(names)] for index in range(count)]


def llama(device: str) -> LlamaForCausalLM:
    torch.manual_seed(0)
    wide = device == "cuda"
    config = LlamaConfig(
        vocab_size=8_000 if wide else 2_000,
        hidden_size=2048 if wide else 384,
        intermediate_size=8192 if wide else 1024,
        num_hidden_layers=8 if wide else 6,
        num_attention_heads=32 if wide else 6,
        num_key_value_heads=8 if wide else 6,
        max_position_embeddings=1024,
        eos_token_id=None,
        pad_token_id=0,
    )
    with torch.device(device):
        model = LlamaForCausalLM(config)
    return model.to(torch.bfloat16) if wide else model


def away_from_zero(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "router" not in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model


def ours(device: str, method: str, **options: Any) -> Case:
    model = lc.attach(llama(device), method, tasks=TASKS, **options)
    if method == "mor1e":
        generator = torch.Generator().manual_seed(0)
        lc.fit_intuition(model, torch.randn(64, model.config.hidden_size, generator=generator).to(device))
    return Case(away_from_zero(model), () if method == "lora" else TASKS)


def of_peft(device: str, names: tuple[str, ...] = ()) -> Case:
    config = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(llama(device), config, adapter_name=names[0] if names else "default")
    for name in names[1:]:
        model.add_adapter(name, config)
    return Case(away_from_zero(model), names=names)


def makers(device: str) -> dict[str, Callable[[], Case]]:
    made: dict[str, Callable[[], Case]] = {
        BASE: lambda: Case(llama(device)),
        PEFT: partial(of_peft, device),
        MIXED: partial(of_peft, device, TASKS),
        "lora": partial(ours, device, "lora"),
        "mtl_lora": partial(ours, device, "mtl_lora"),
    }
    return made | {name: partial(ours, device, name, **options) for name, options in ROUTED.items()}


Bounds = dict[tuple[str, str], float | None]


def benchmark(options: Options, device: str) -> Iterator[Result]:
    vocabulary = llama(device).config.vocab_size

    def prompts(count: int, length: int) -> Tensor:
        ids_BL = torch.randint(1, vocabulary, (count, length), generator=torch.Generator().manual_seed(0))
        return ids_BL.to(device)

    routed = [name for name in ROUTED if not options.quick or name in QUICK]
    cases = {name: make() for name, make in makers(device).items() if name not in ROUTED or name in routed}
    bounds: Bounds = {
        (PEFT, BASE): None,
        (MIXED, BASE): None,
        ("lora", BASE): None,
        ("mtl_lora", BASE): None,
        ("lora", PEFT): 1.02,
        ("mtl_lora", "lora"): 1.15,
        ("mtl_lora", MIXED): 0.6,
    }
    bounds |= {(name, "lora"): 1.5 for name in routed}
    ids_BL = prompts(ROWS, PROMPT)
    yield from compared("write", {name: partial(case.write, ids_BL) for name, case in cases.items()}, bounds, options)
    without: Bounds = dict.fromkeys(bounds)
    for count in (8,) if options.quick else (1, 8, 32):
        ids_BL = prompts(count, 128 if options.quick else READ)
        steps = {name: partial(case.read, ids_BL) for name, case in cases.items()}
        yield from compared(f"read {count} x {ids_BL.shape[1]}", steps, without, options)


def compared(kind: str, steps: Mapping[str, Step], bounds: Bounds, options: Options) -> Iterator[Result]:
    rounds = interleave(steps, num_pairs=3 if options.quick else 21)
    for (case, baseline), bound in bounds.items():
        value, error = rounds.ratio_and_error(case, baseline)
        yield Result(f"{kind}: {case} / {baseline}", value, bound=bound, error=error)


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to write; default cpu")
    arguments = vars(parser.parse_args())
    device = arguments.pop("device")
    torch.set_num_threads(NUM_THREADS)
    options = Options(**arguments)
    return report(benchmark(options, device), options)


if __name__ == "__main__":
    raise SystemExit(main())
