"""Step time and saved activations of every method: against PEFT's LoRA, loops over experts, and a frozen model.

    python benchmarks/step_time.py [--quick] [--json] [--device cuda]

Two random models, fed by embeddings that require gradients, so that even a frozen one has something to backpropagate
to: `llama` (4 blocks of 384 features) and `minilm` (the architecture of MiniLM-L6: 6 blocks of 384); with `--quick` one
block of each. Batches of 16 x 64 tokens (with `--quick` 16 x 48), sorted by task; adapters of rank 8 on all linears,
four tasks. HydraLoRA and MoSLD have 8 experts in every layer; all else is at the methods' defaults. Every row is a
ratio of two things measured side by side: the mean over builds of the median over rounds, with its standard error;
where the tensors of a model come to lie in memory makes up to .1 of a ratio, in either direction; what the process
has held before up to .05, for a new one gives memory back between steps and pays for it in page faults. There are four
builds, and up to 24 while a mean is within two standard errors of its bound (with `--quick` one, of few rounds: it
shows that all runs, and hardly more). As in training, a step that is timed follows one of its own (not with `--quick`):
after another model's, the caches hold what is not its own, which costs methods of many small operations more than
others. So do neighbours on a shared processor, which push an operation's code out of its caches between one layer and
the next.

With `--device cuda`, models as wide as those people tune, in bfloat16 under its autocast: `llama_1b` (8 blocks of 2,048
features) on 16 x 256 tokens, where a step takes as long as it takes to launch its kernels, and `llama_8b` (3 blocks of
4,096) on 16 x 1,024, where it takes as long as these run. One build, for nothing there hangs on memory's layout.

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

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import lorachord as lc
from harness import Options, Result, Step, interleave, mean_and_error, parser_of, report, undecided
from loops import LOOPS, Loop
from lorachord.core.adapter import Adapter
from lorachord.tuner.layer import LorachordLinear

TASKS = ("a", "b", "c", "d")
NUM_SAMPLES = 16
BUILDS = 4, 24
"""The fewest and the most of each pair."""
LENGTHS = {"llama_1b": 256, "llama_8b": 1024}
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
WITHOUT_BOUND = ("moelora (64 tokens)",)


def llama(quick: bool) -> PreTrainedModel:
    num_layers = 1 if quick else 4
    # The output layer, which has no adapter, keeps its share of the work.
    config = LlamaConfig(vocab_size=250 * num_layers, hidden_size=384, intermediate_size=1024, num_attention_heads=6)
    config.num_hidden_layers = num_layers
    return LlamaForCausalLM(config)


def llama_1b(quick: bool) -> PreTrainedModel:
    config = LlamaConfig(vocab_size=8_000, hidden_size=2048, intermediate_size=8192, num_attention_heads=32)
    config.num_key_value_heads, config.num_hidden_layers = 8, 2 if quick else 8
    return LlamaForCausalLM(config)


def llama_8b(quick: bool) -> PreTrainedModel:
    config = LlamaConfig(vocab_size=8_000, hidden_size=4096, intermediate_size=14336, num_attention_heads=32)
    config.num_key_value_heads, config.num_hidden_layers = 8, 1 if quick else 3
    return LlamaForCausalLM(config)


def minilm(quick: bool) -> PreTrainedModel:
    config = BertConfig(hidden_size=384, intermediate_size=1536, num_attention_heads=12)
    config.num_hidden_layers = 1 if quick else 6
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    return BertModel(config, add_pooling_layer=False)


@dataclass(frozen=True)
class Workload:
    """How to make a model, the batch for it, and the weights whose product with its output is the loss."""

    name: str
    build: Callable[[], PreTrainedModel]
    embeddings_BLD: Tensor
    task_ids_B: Tensor
    weight_BLV: Tensor

    @classmethod
    def make(cls, architecture: Callable[[bool], PreTrainedModel], quick: bool, device: str = "cpu") -> Workload:
        half = device != "cpu"

        def build() -> PreTrainedModel:
            torch.manual_seed(0)
            with torch.device(device):
                model = architecture(quick)
            model.train()
            return model.to(torch.bfloat16) if half else model

        model = build()
        length = LENGTHS.get(architecture.__name__, 48 if quick else 64)
        shape = NUM_SAMPLES, length, model.config.hidden_size
        embeddings_BLD = torch.randn(shape, device=device, dtype=model.dtype, requires_grad=True)
        with torch.no_grad():
            weight_BLV = torch.randn_like(model(inputs_embeds=embeddings_BLD)[0])
        task_ids_B = torch.arange(len(TASKS), device=device).repeat_interleave(NUM_SAMPLES // len(TASKS))
        return cls(architecture.__name__, build, embeddings_BLD, task_ids_B, weight_BLV)

    @property
    def half(self) -> bool:
        """Whether the model is in bfloat16, and trained under its autocast."""
        return self.embeddings_BLD.dtype == torch.bfloat16

    def ours(self, case: str) -> nn.Module:
        method, options = CASES[case]
        model = lc.attach(self.build(), method, tasks=TASKS, **options)
        if method == "mor1e":
            # As in training, where embeddings are made once a row: a step is handed them.
            lc.fit_intuition(model, self.prompt_embeddings)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # Away from zero updates, whose equality would say nothing.
                if parameter.requires_grad and "router" not in name:
                    parameter.add_(torch.randn_like(parameter), alpha=0.05)
        return model

    def loop(self, case: str, layer_type: type[Loop]) -> nn.Module:
        """A case's weights in layers of another type, checked to compute the same as ours (not in bfloat16)."""
        ours, model = self.ours(case), self.build().requires_grad_(False)
        for adapter in adapters_of(ours):
            base = model.get_submodule(adapter.layer.name)
            model.set_submodule(adapter.layer.name, layer_type(base, adapter, self.task_ids_B))
        if self.half:
            # Near ties choose other experts.
            return model
        results = []
        for candidate in (ours.eval(), model.eval()):
            output_BLV = self.forward_of(candidate)()
            results.append((output_BLV, *torch.autograd.grad(output_BLV, self.embeddings_BLD, self.weight_BLV)))
            candidate.train()
        for expected, found in zip(*results, strict=True):
            torch.testing.assert_close(found / expected.abs().max(), expected / expected.abs().max(), rtol=0, atol=1e-4)
        return model

    @property
    def prompt_embeddings(self) -> Tensor:
        """Embeddings of prompts; the first are those of the batch."""
        return torch.randn(64, 16, generator=torch.Generator().manual_seed(0)).to(self.embeddings_BLD.device)

    def batches(self, num_samples: int, batch_size: int) -> list[dict[str, Tensor]]:
        """Inputs as wide and as long as the batch's, of other texts."""
        like = self.embeddings_BLD
        samples_BLD = torch.randn(num_samples, *like.shape[1:], dtype=like.dtype, device=like.device)
        return [{"inputs_embeds": batch_BLD} for batch_BLD in samples_BLD.split(batch_size)]

    def loss_of(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        output_BLV: Tensor = model(**batch)[0]
        return (output_BLV * self.weight_BLV[: len(output_BLV)]).sum()

    def forward_of(self, model: nn.Module) -> Callable[[], Tensor]:
        adapters = adapters_of(model)
        embedding_BF = self.prompt_embeddings[:NUM_SAMPLES] if adapters and adapters[0].method == "mor1e" else None

        def forward() -> Tensor:
            tasks = lc.on_task(model, self.task_ids_B, embedding=embedding_BF) if adapters else nullcontext()
            with tasks, torch.autocast(self.embeddings_BLD.device.type, torch.bfloat16, enabled=self.half):
                output_BLV: Tensor = model(inputs_embeds=self.embeddings_BLD)[0]
            return output_BLV

        return forward

    def step_of(self, model: nn.Module, *, optimise: bool = True) -> Step:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # Fused, as the Trainer has it by default.
        optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True) if optimise else None
        loops = [module for module in model.modules() if isinstance(module, Loop)]
        forward, ours = self.forward_of(model), bool(adapters_of(model))

        def step() -> None:
            loss = (forward() * self.weight_BLV).sum()
            penalties = [lc.penalty(model)] if ours else [layer.penalty for layer in loops if layer.penalty is not None]
            sum(penalties, start=loss).backward()
            if optimizer is not None:
                optimizer.step()
            for leaf in (*trained, self.embeddings_BLD):
                leaf.grad = None

        return step


def adapters_of(model: nn.Module) -> list[Adapter]:
    return [adapter for layer in model.modules() if isinstance(layer, LorachordLinear) for adapter in layer.active()]


def width_of(model: nn.Module) -> int:
    """The rank of the plain LoRA that an adapted model is compared with."""
    adapter = adapters_of(model)[0]
    return max(len(adapter.down_weight()), adapter.up_weight().shape[1])


def saved_bytes_of(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes of the distinct storages, other than parameters', that a forward pass keeps for its backward pass."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> None:
        # Holding the storages keeps their addresses from being given out again; without the tensors' place in the
        # graph, which would hold itself for ever.
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor.detach())

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda nothing: nothing):
        output = forward()
    assert output.requires_grad
    return sum(tensor.untyped_storage().nbytes() for pointer, tensor in kept.items() if pointer not in own)


def saved_bytes(work: Workload, model: nn.Module) -> int:
    """The same for one of a workload's models."""
    return saved_bytes_of(model, work.forward_of(model))


def timed(
    work: Workload,
    makers: Mapping[str, Callable[[], nn.Module]],
    bounds: Mapping[tuple[str, str], float | None],
    quick: bool,
    *,
    optimise: bool = True,
) -> dict[tuple[str, str], list[float]]:
    """Of each pair of a case and its baseline, the ratio in every build that was made for it.

    Args:
        work: the workload.
        makers: how to build what is timed.
        bounds: the pairs, and the bound of each.
        quick: whether a single build must do.
        optimise: whether a step is a whole one.
    """
    fewest, most, num_pairs, num_untimed = (1, 1, 6, 0) if work.half else (1, 1, 5, 0) if quick else (*BUILDS, 3, 1)
    ratios: dict[tuple[str, str], list[float]] = {pair: [] for pair in bounds}
    pairs = list(bounds)
    for seed in range(most):
        names = list(dict.fromkeys(name for pair in pairs for name in pair))
        # What is built last comes to lie in other memory than what is built first.
        Random(seed).shuffle(names)
        steps = {name: work.step_of(makers[name](), optimise=optimise) for name in names}
        # The first of the untimed steps warms up.
        rounds = interleave(steps, num_pairs=num_pairs, num_warmup=1 - num_untimed, num_untimed=num_untimed, seed=seed)
        for pair in pairs:
            ratios[pair].append(rounds.ratio(*pair))
        if seed + 1 >= fewest:
            pairs = [pair for pair in pairs if undecided(ratios[pair], bounds[pair])]
        if not pairs:
            break
    return ratios


def beside_peft(work: Workload, r: int, cases: Sequence[str], quick: bool) -> Iterator[Result]:
    """The cases whose factors are r wide, which take turns with one LoRA of PEFT's."""
    against = f"PEFT LoRA r {r}"
    makers: dict[str, Callable[[], nn.Module]] = {case: partial(work.ours, case) for case in cases}
    makers[against] = lambda: lc.attach(work.build(), "peft_lora", r=r)
    bounds = {(case, against): None if case in WITHOUT_BOUND else 1.10 for case in cases}
    ratios = timed(work, makers, bounds, quick)
    sizes = {name: saved_bytes(work, make()) for name, make in makers.items()}
    for (case, _), bound in bounds.items():
        value, error = mean_and_error(ratios[case, against])
        yield Result(f"step: {case} / {against}", value, bound=bound, error=error)
        yield Result(f"saved: {case} / {against}", sizes[case] / sizes[against])


def beside_loops(work: Workload, case: str, quick: bool) -> Iterator[Result]:
    """A case's loops, which take turns with it."""
    makers: dict[str, Callable[[], nn.Module]] = {
        name: partial(work.loop, case, layer_type)
        for name, layer_type in LOOPS[case].items()
        if not quick or (name, case, work.name) == ("loop", "hydralora", "minilm")
    }
    if not makers:
        return
    bounds = {(name, case): 2.0 if name == "loop" else None for name in makers}
    makers[case] = partial(work.ours, case)
    ratios = timed(work, makers, bounds, quick)
    size = saved_bytes(work, makers[case]())
    for (name, _), bound in bounds.items():
        value, error = mean_and_error(ratios[name, case])
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
    step = work.step_of(lc.attach(work.build(), "peft_lora", r=8))
    ten: dict[str, Step] = {"ten steps": lambda: [step() for _ in range(10)]}
    rounds = interleave(ten | calls, num_pairs=1, num_warmup=0)
    for method in calls:
        yield Result(f"calibration: {method}", 10 * rounds.ratio(method, "ten steps"), unit="steps")


def limits(work: Workload, quick: bool) -> Iterator[Result]:
    makers: dict[str, Callable[[], nn.Module]] = {
        "frozen": lambda: work.build().requires_grad_(False),
        "PEFT LoRA r 8": lambda: lc.attach(work.build(), "peft_lora", r=8),
        "lora": lambda: work.ours("lora"),
    }
    bounds = {(name, "frozen"): None for name in [*makers][1:]}
    for (name, _), found in timed(work, makers, bounds, quick, optimise=False).items():
        value, error = mean_and_error(found)
        yield Result(f"limit: {name} / frozen", value, error=error)


def benchmark(work: Workload, options: Options) -> Iterator[Result]:
    # A quick run leaves out what has no bound or hardly differs from another, and all loops but one.
    left_out = (
        (*WITHOUT_BOUND, "mixlora (frozen hash)", "mtl_lora (8 ups)", "mode (8 experts)") if options.quick else ()
    )
    cases_by_width: dict[int, list[str]] = {}
    for case in CASES:
        if case not in left_out:
            cases_by_width.setdefault(width_of(work.ours(case)), []).append(case)
    for r, cases in sorted(cases_by_width.items()):
        yield from beside_peft(work, r, cases, options.quick)
    for case in LOOPS:
        if case not in left_out:
            yield from beside_loops(work, case, options.quick)
    if not options.quick and not work.half:
        yield from calibrations(work)
    yield from limits(work, options.quick)


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to train; default cpu")
    arguments = vars(parser.parse_args())
    device = arguments.pop("device")
    options = Options(**arguments)
    torch.set_num_threads(2)
    architectures = (llama, minilm) if device == "cpu" else (llama_1b, llama_8b)
    workloads = (Workload.make(build, options.quick, device) for build in architectures)
    rows = (replace(row, case=f"{work.name} {row.case}") for work in workloads for row in benchmark(work, options))
    return report(rows, options)


if __name__ == "__main__":
    raise SystemExit(main())
