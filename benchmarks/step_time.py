"""Step time and saved activations of every method: against PEFT's LoRA, naive loops over experts, and a frozen model.

    python benchmarks/step_time.py [--quick] [--json]

Two random models, fed by embeddings that require gradients, so that even a frozen one has something to backpropagate
to: `llama` (4 blocks of 256 features, 8 x 64 tokens) and `minilm` (the architecture of MiniLM-L6, 6 blocks of 384, 16 x
64 tokens); with `--quick` 1 block and half the samples. Adapters of rank 8 on all linears, four tasks, batches sorted
by task. HydraLoRA and MoSLD have 8 experts in every layer; all else is at the methods' defaults.

- `step`: a training step (the tasks named, forward, backward, penalty, AdamW, zero_grad) against that of PEFT's LoRA of
  rank max(R, S), the wider of the stacked factors: at most 1.10.
- `naive`: a training step in the style of the published codes, a Python loop over 8 experts (and over tasks), against
  ours: at least 2. That both compute the same is checked first. The release of MTL-LoRA has no such loop (it mixes the
  up-projections first, one copy for each sample); it is timed as `released`, without a bound.
- `saved`: bytes kept for the backward pass, parameters not counted.
- `limit`: forward and backward alone, against those of the frozen model to its inputs. Target 1.10.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import lorachord as lc
from harness import Options, Result, Rounds, Step, interleave, parse_options, report
from lorachord.core.adapter import Adapter
from lorachord.core.routing import balance_loss
from lorachord.tuner.layer import LorachordLinear

TASKS = ("a", "b", "c", "d")
EXPERTS = 8
# Name of the case: method, options, rank of the PEFT LoRA that it is held against.
METHODS: dict[str, tuple[str, dict[str, int], int]] = {
    "lora": ("lora", {}, 8),
    "multilora": ("multilora", {}, 24),
    "mtl_lora": ("mtl_lora", {}, 24),
    "hydralora": ("hydralora", {"num_experts": EXPERTS}, 64),
    "mosld": ("mosld", {"num_experts": EXPERTS}, 64),
    "mtl_lora, 8 ups": ("mtl_lora", {"num_ups": EXPERTS}, 64),
}
LOOPED = ("mtl_lora, 8 ups", "hydralora", "mosld")


def llama(quick: bool) -> PreTrainedModel:
    num_layers = 1 if quick else 4
    # The output layer, which has no adapter, keeps its share of the work.
    sizes = dict(vocab_size=250 * num_layers, hidden_size=256, intermediate_size=688, num_attention_heads=4)
    return LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=num_layers))


def minilm(quick: bool) -> PreTrainedModel:
    sizes = dict(hidden_size=384, intermediate_size=1536, num_attention_heads=12)
    dropout = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    config = BertConfig(**sizes, **dropout, num_hidden_layers=1 if quick else 6, attn_implementation="sdpa")
    return BertModel(config, add_pooling_layer=False)


@dataclass(frozen=True)
class Workload:
    """A model, its batch, and the weights whose product with the output is the loss."""

    name: str
    build: Callable[[], PreTrainedModel]
    embeddings_BLD: Tensor
    task_ids_B: Tensor
    weight_BLV: Tensor

    @classmethod
    def make(cls, build: Callable[[bool], PreTrainedModel], num_samples: int, quick: bool) -> Workload:
        num_samples = num_samples // 2 if quick else num_samples
        model = build(quick)
        shape = (num_samples, 64, model.config.hidden_size)
        embeddings_BLD = torch.randn(shape).requires_grad_()
        task_ids_B = torch.arange(len(TASKS)).repeat_interleave(num_samples // len(TASKS))
        with torch.no_grad():
            weight_BLV = torch.randn_like(model(inputs_embeds=embeddings_BLD)[0])

        def seeded() -> PreTrainedModel:
            torch.manual_seed(0)
            return build(quick).train()

        return cls(build.__name__, seeded, embeddings_BLD, task_ids_B, weight_BLV)

    def output(self, model: nn.Module, ours: bool = False) -> Tensor:
        with lc.on_task(model, self.task_ids_B) if ours else nullcontext():
            output: Tensor = model(inputs_embeds=self.embeddings_BLD)[0]
            return output

    def step(self, model: nn.Module, *, ours: bool = False, optimise: bool = True) -> Step:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-5) if optimise else None
        naive = [module for module in model.modules() if isinstance(module, NaiveExperts)]

        def step() -> None:
            loss = (self.output(model, ours) * self.weight_BLV).sum()
            loss = loss + lc.penalty(model) if ours else loss
            for layer in naive:
                loss = loss if layer.penalty is None else loss + layer.penalty
            loss.backward()
            if optimizer is not None:
                optimizer.step()
            for parameter in trained:
                parameter.grad = None
            self.embeddings_BLD.grad = None

        return step


class NaiveExperts(nn.Module):
    """HydraLoRA or MoSLD as a loop over experts, with the weights of `adapter`."""

    def __init__(self, base: nn.Linear, adapter: Adapter, task_ids_B: Tensor) -> None:
        super().__init__()
        config, self.base = adapter.config, base
        self.scaling, self.task_ids_B, self.penalty = adapter.scale, task_ids_B, None
        self.lora_A = linear(adapter.down)
        self.lora_B = nn.ModuleList(linear(up) for up in adapter.up.split(config.r, dim=1))
        self.build(adapter)

    def build(self, adapter: Adapter) -> None:
        self.lora_route = linear(adapter.router.weight)
        config = adapter.config
        self.top_k, self.weight_dropout = getattr(config, "top_k", None), getattr(config, "weight_dropout", 0.0)
        self.balance = config.balance

    def forward(self, x_BLD: Tensor) -> Tensor:
        result_BLO = self.base(x_BLD)
        probs_BLE = torch.softmax(self.lora_route(x_BLD), dim=-1, dtype=torch.float32)
        gates_BLE, chosen_BLE = probs_BLE, None
        if self.top_k is not None:
            top = probs_BLE.topk(self.top_k, dim=-1)
            kept = top.values / top.values.sum(dim=-1, keepdim=True)
            gates_BLE = torch.zeros_like(probs_BLE).scatter(-1, top.indices, kept)
            chosen_BLE = torch.zeros_like(probs_BLE).scatter(-1, top.indices, 1.0)
        self.penalty = self.balance * balance_loss(probs_BLE, chosen_BLE, None) if self.balance else None
        h_BLR = F.linear(x_BLD, F.dropout(self.lora_A.weight, self.weight_dropout, self.training))
        for expert, lora_B in enumerate(self.lora_B):
            result_BLO = result_BLO + gates_BLE[..., expert : expert + 1] * lora_B(h_BLR) * self.scaling
        return result_BLO


class NaiveTasks(NaiveExperts):
    """MTL-LoRA as a loop over tasks and one over up-projections."""

    def build(self, adapter: Adapter) -> None:
        self.lora_lambda = nn.ModuleList(linear(transform) for transform in adapter.transform)
        self.lora_B_w = nn.Parameter(adapter.mixture.detach().clone())
        self.temperature = adapter.config.temperature

    def forward(self, x_BLD: Tensor) -> Tensor:
        result_BLO, h_BLR = self.base(x_BLD), self.lora_A(x_BLD)
        transformed_BLR = torch.zeros_like(h_BLR)
        for task, lora_lambda in enumerate(self.lora_lambda):
            chosen_B = self.task_ids_B == task
            transformed_BLR[chosen_B] = lora_lambda(h_BLR[chosen_B])
        share_BU = torch.softmax(self.lora_B_w / self.temperature, dim=-1)[self.task_ids_B]
        for up, lora_B in enumerate(self.lora_B):
            result_BLO = result_BLO + share_BU[:, up, None, None] * lora_B(transformed_BLR) * self.scaling
        return result_BLO


class ReleasedTasks(NaiveExperts):
    """MTL-LoRA the way its authors' release does it: mixed up-projections, copied for each sample."""

    def build(self, adapter: Adapter) -> None:
        self.lora_lambda = nn.Parameter(adapter.transform.detach().clone())
        self.lora_B_w = nn.Parameter(adapter.mixture.detach().clone())
        self.lora_B = nn.Parameter(torch.stack([up.weight.detach() for up in self.lora_B]))
        self.temperature = adapter.config.temperature

    def forward(self, x_BLD: Tensor) -> Tensor:
        share_TU = torch.softmax(self.lora_B_w / self.temperature, dim=-1)
        mixed_TOR = (share_TU @ self.lora_B.flatten(1)).unflatten(1, self.lora_B.shape[1:])
        down_BDR = self.lora_A.weight.t().expand(len(x_BLD), -1, -1)
        h_BLR = torch.bmm(torch.bmm(x_BLD, down_BDR), self.lora_lambda[self.task_ids_B].mT)
        return self.base(x_BLD) + torch.bmm(h_BLR, mixed_TOR[self.task_ids_B].mT) * self.scaling


def linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data.copy_(weight.detach())
    return layer


def ours_of(work: Workload, case: str, **changes: float) -> nn.Module:
    method, options, _ = METHODS[case]
    model = lc.attach(work.build(), method, tasks=TASKS, **{**options, **changes})
    # Away from zero updates, for which equal outputs would say nothing.
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "router" not in name:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def naive_of(work: Workload, ours: nn.Module, kind: type[NaiveExperts]) -> nn.Module:
    """A model with loops in place of `ours`' adapters, and the same weights; checked to give the same output."""
    model = work.build().requires_grad_(False)
    layers = [layer for layer in ours.modules() if isinstance(layer, LorachordLinear)]
    for layer in layers:
        adapter = layer.active()[0]
        parent, _, name = adapter.layer.name.rpartition(".")
        base = model.get_submodule(adapter.layer.name)
        setattr(model.get_submodule(parent), name, kind(base, adapter, work.task_ids_B))
    results = []
    # In eval mode, without the random dropout of weights.
    for candidate, is_ours in ((ours.eval(), True), (model.eval(), False)):
        output_BLV = work.output(candidate, is_ours)
        (grad_BLD,) = torch.autograd.grad(output_BLV, work.embeddings_BLD, work.weight_BLV)
        results.append((output_BLV.detach(), grad_BLD))
        candidate.train()
    for expected, found in zip(*results, strict=True):
        error = float((expected - found).abs().max() / expected.abs().max())
        assert error < 1e-4, f"{kind.__name__} differs from ours by {error:.1e}: nothing to compare"
    return model


def saved_bytes(work: Workload, model: nn.Module, ours: bool = False) -> int:
    """Bytes of the distinct storages that one forward pass keeps for its backward pass, other than parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        # Holding the tensors keeps their addresses from being given out again.
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output_BLV = work.output(model, ours)
    assert output_BLV.requires_grad
    return sum(tensor.untyped_storage().nbytes() for pointer, tensor in kept.items() if pointer not in own)


def benchmark(work: Workload, options: Options) -> list[Result]:
    ours = {case: ours_of(work, case) for case in METHODS}
    naive = {
        case: naive_of(work, ours[case], NaiveTasks if case.startswith("mtl") else NaiveExperts) for case in LOOPED
    }
    released = naive_of(work, ours["mtl_lora, 8 ups"], ReleasedTasks)
    peft = {r: lc.attach(work.build(), "peft_lora", r=r) for r in (8, 24, 64)}
    frozen = work.build().requires_grad_(False)

    def timed(steps: dict[str, Step]) -> Rounds:
        return interleave(steps, options.num_pairs)

    results = []
    for r, baseline in peft.items():
        cases = [case for case in METHODS if METHODS[case][2] == r]
        steps = {case: work.step(ours[case], ours=True) for case in cases} | {"peft": work.step(baseline)}
        looped = [case for case in cases if case in naive]
        steps |= {f"naive {case}": work.step(naive[case]) for case in looped}
        if "mtl_lora, 8 ups" in cases:
            steps["released"] = work.step(released)
        rounds = timed(steps)
        for case in cases:
            row = f"{work.name} step: {case} / PEFT LoRA r {r}"
            results.append(Result(row, rounds.ratio(case, "peft"), bound=1.10))
        for case in looped:
            row = f"{work.name} naive: loop / {case}"
            results.append(Result(row, rounds.ratio(f"naive {case}", case), bound=2.0, better="higher"))
        if "released" in steps:
            row = f"{work.name} released: mtl_lora / mtl_lora, 8 ups"
            results.append(Result(row, rounds.ratio("released", "mtl_lora, 8 ups")))

    for case, (_, _, r) in METHODS.items():
        size = saved_bytes(work, ours[case], ours=True)
        results.append(Result(f"{work.name} saved: {case} / PEFT LoRA r {r}", size / saved_bytes(work, peft[r])))
        if case in naive:
            results.append(Result(f"{work.name} saved: {case} / loop", size / saved_bytes(work, naive[case])))

    limits = {"frozen": frozen, "PEFT LoRA r 8": peft[8], "lora": ours["lora"]}
    rounds = timed({name: work.step(model, ours=name == "lora", optimise=False) for name, model in limits.items()})
    rows = (Result(f"{work.name} limit: {name} / frozen", rounds.ratio(name, "frozen")) for name in limits)
    return results + list(rows)[1:]


def main() -> int:
    options = parse_options(__doc__)
    torch.set_num_threads(2)
    torch.manual_seed(0)
    workloads = (Workload.make(build, size, options.quick) for build, size in ((llama, 8), (minilm, 16)))
    return report([row for work in workloads for row in benchmark(work, options)], options)


if __name__ == "__main__":
    raise SystemExit(main())
