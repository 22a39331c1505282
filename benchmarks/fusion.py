"""Layer-wise AdaMerging on stacked factors, against merged dense weights as fusion-bench makes them.

    python benchmarks/fusion.py [--quick] [--json]

Two random models, fed by embeddings: `llama` (4 blocks of 384 features) and `minilm` (6 blocks of 384); with `--quick`
one block of each. Four LoRAs of rank 8 on all linears are fused. A step is a batch of 8 x 64 tokens of every task, the
entropy of each sample's last token, backward, Adam on the coefficients, clamped to [0, 1]. Every row is a ratio of two
things measured side by side; that both have the same entropies and gradients is checked first.

- `step`: ours over fusion-bench's `LayerWiseMergedModel`. At most 1.
- `held`: bytes of the task vectors, ours over theirs (T dense copies of the adapted weights). At most .25.
- `kept`: bytes that a task's forward pass keeps for the backward pass, merged weights with it. At most 1.
- `frozen`: our step over one of the frozen model to its inputs, which is what no way of adapting can go below.

fusion-bench is not a dependency (`pip install fusion-bench`); without it its rows are left out, with a message.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from harness import Options, Result, Step, interleave, parse_options, report

# isort: split
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import lorachord as lc
from lorachord.fusion.adapt import clamp, combinations, distinct, new_coefficients
from lorachord.fusion.factors import LowRank
from lorachord.fusion.predictions import Predictions, entropy
from lorachord.fusion.task_vectors import Stacked, TaskVectors
from lorachord.fusion.updates import inside
from workload import llama, minilm, saved_bytes_of

try:
    from fusion_bench.models.wrappers.layer_wise_fusion import LayerWiseMergedModel
except ImportError:
    LayerWiseMergedModel = None

NUM_TASKS, RANK, NUM_SAMPLES, LENGTH = 4, 8, 8, 64


@dataclass(frozen=True)
class Bench:
    """One model's task vectors, and a batch of every task."""

    name: str
    build: Callable[[], PreTrainedModel]
    vectors: TaskVectors
    batches_TBLD: Tensor

    @classmethod
    def make(cls, architecture: Callable[[bool], PreTrainedModel], quick: bool) -> Bench:
        def build() -> PreTrainedModel:
            torch.manual_seed(0)
            return architecture(quick).eval().requires_grad_(False)

        model = build()
        layers = {}
        for spec in lc.target_layers(model):
            factors = [
                LowRank(torch.randn(RANK, spec.d_in) / spec.d_in**0.5, 0.02 * torch.randn(spec.d_out, RANK))
                for _ in range(NUM_TASKS)
            ]
            layers[spec.name] = Stacked.of(factors)
        batches_TBLD = torch.randn(NUM_TASKS, NUM_SAMPLES, LENGTH, model.config.hidden_size)
        return cls(architecture.__name__, build, TaskVectors(model, tuple("abcd"), layers, {}), batches_TBLD)

    def loss(self, model: Callable[..., tuple[Tensor, ...]], x_BLD: Tensor) -> Tensor:
        logits_BV = model(inputs_embeds=x_BLD)[0][:, -1]
        return entropy(Predictions(logits_BV.log_softmax(-1), torch.full((len(x_BLD),), 1 / len(x_BLD))))


def step_of(
    bench: Bench, model: Callable[..., tuple[Tensor, ...]], parameters: list[nn.Parameter], after: Step
) -> Step:
    """Adapt by one step."""
    optimizer = torch.optim.Adam(parameters, lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        for x_BLD in bench.batches_TBLD:
            # fusion-bench keeps its merged weights for the next task's pass as well.
            bench.loss(model, x_BLD).backward(retain_graph=True)
        optimizer.step()
        after()

    return step


def theirs(bench: Bench) -> nn.Module:
    """fusion-bench's wrapper, with the adapted weights alone as task vectors."""
    tuned = []
    for task in range(NUM_TASKS):
        model = bench.build()
        for name, layer in bench.vectors.layers.items():
            model.get_submodule(name).weight.add_(layer.delta(task))
        tuned.append(model)
    base = bench.build()
    for name in bench.vectors.layers:
        base.get_submodule(name).weight.requires_grad_(True)
    weights = torch.full((NUM_TASKS, len(bench.vectors.layers)), 0.3)
    # Not strict: buffers that are not saved stay the model's own.
    return LayerWiseMergedModel(weights, base, tuned, strict=False)


def benchmark(bench: Bench, options: Options) -> Iterator[Result]:
    coefficients = new_coefficients(bench.vectors, "layer", 0.3)
    adapters, plus = combinations(bench.vectors, coefficients)
    with inside(bench.vectors.base, adapters, plus) as ours:
        steps = {"ours": step_of(bench, ours, distinct(coefficients), lambda: clamp(coefficients))}
        leaf = nn.Parameter(torch.zeros(bench.vectors.base.config.hidden_size))
        frozen = bench.build()
        steps["frozen"] = step_of(
            bench, lambda inputs_embeds: frozen(inputs_embeds=inputs_embeds + leaf), [leaf], lambda: None
        )
        other = None if LayerWiseMergedModel is None else theirs(bench)
        if other is None:
            print(f"{bench.name}: fusion-bench is not installed; its rows are left out", file=sys.stderr)
        else:
            other.merge_weights()
            check(bench, ours, list(coefficients.values()), other)
            kept = {
                name: saved_bytes_of(model, lambda model=model: bench.loss(model, bench.batches_TBLD[0]))
                for name, model in (("ours", ours), ("theirs", other))
            }
            dense = sum(vector.numel() for vector in other.task_vectors.parameters())
            stacked = sum(v.down_RD.numel() + v.up_OR.numel() for v in bench.vectors.layers.values())
            steps["theirs"] = step_of(bench, other, [other.merge_weight], other.merge_weights)
        rounds = interleave(steps, num_pairs=5 if options.quick else 15)
        if other is not None:
            yield Result(f"{bench.name}: step", rounds.ratio("ours", "theirs"), bound=1.0)
            yield Result(f"{bench.name}: held", stacked / dense, bound=0.25)
            yield Result(f"{bench.name}: kept", kept["ours"] / kept["theirs"], bound=1.0)
        yield Result(f"{bench.name}: frozen", rounds.ratio("ours", "frozen"))


def check(bench: Bench, ours: nn.Module, coefficients: list[nn.Parameter], other: nn.Module) -> None:
    """That both compute the same."""
    losses = [bench.loss(model, bench.batches_TBLD[0]) for model in (ours, other)]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-6)
    found_LT = torch.stack(torch.autograd.grad(losses[0], coefficients))
    (expected_TL,) = torch.autograd.grad(losses[1], [other.merge_weight])
    torch.testing.assert_close(found_LT.t(), expected_TL, rtol=1e-3, atol=1e-3 * float(expected_TL.abs().max()))
    # The graph of the merged weights is spent.
    other.merge_weights()


def results(options: Options) -> Iterator[Result]:
    for architecture in (llama, minilm):
        yield from benchmark(Bench.make(architecture, options.quick), options)


if __name__ == "__main__":
    options = parse_options(__doc__)
    sys.exit(report(results(options), options))
