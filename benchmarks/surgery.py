"""What the gradients of T tasks cost: a training step with Ortho-LoRA over a joint step, and over what others do.

    python benchmarks/surgery.py [--quick] [--json] [--model llama|minilm]

LoRA of rank 8 on all linears of two random models, fed by embeddings: `llama` (4 blocks of 384 features) and `minilm`
(6 blocks of 384); with `--quick` one block of each. At least 16 samples of 64 tokens, sorted by task, at least one a
task. A step is forward, backward, what the way does with the gradients, AdamW and zero_grad.

- `one_pass`: one mixed batch, the leaves with a task axis, Ortho-LoRA within every factor. At most 1.10 of a joint step
  without surgery with 2 to 8 tasks, and 1.20 with 32.
- `micro_batches`: a forward and a backward pass for each task's samples.
- `T x grad`: one forward, `torch.autograd.grad` for each task, the same rule.
- `TorchJD autojac`: its Jacobians and PCGrad, on PEFT's LoRA. `TorchJD Engine`: its Gramian of the samples' losses,
  summed to tasks, and a backward pass with the weights; likewise.
- `saved`: bytes that the forward pass keeps for the backward pass, `one_pass` over joint. At most 1.15. The buffer with
  the task axis (leaves and their gradients) is printed apart, in MiB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import lorachord as lc
from harness import Options, Result, Step, interleave, parser_of, report
from lorachord.surgery.rules import OrthoLora
from lorachord.surgery.surgeon import Surgeon
from workload import llama, minilm, saved_bytes_of

RULE = OrthoLora(order="fixed")


@dataclass(frozen=True)
class Bench:
    """One model and number of tasks; each case has a model of its own with the same weights."""

    name: str
    build: Callable[[], PreTrainedModel]
    num_tasks: int
    embeddings_BLD: Tensor
    task_ids_B: Tensor
    weight_BLV: Tensor

    @classmethod
    def make(cls, architecture: Callable[[bool], PreTrainedModel], num_tasks: int, quick: bool) -> Bench:
        def build() -> PreTrainedModel:
            torch.manual_seed(0)
            return architecture(quick).train()

        model, num_samples = build(), max(16, num_tasks)
        embeddings_BLD = torch.randn(num_samples, 64, model.config.hidden_size)
        with torch.no_grad():
            weight_BLV = torch.randn_like(model(inputs_embeds=embeddings_BLD)[0])
        task_ids_B = torch.arange(num_tasks).repeat_interleave(num_samples // num_tasks)
        return cls(architecture.__name__, build, num_tasks, embeddings_BLD, task_ids_B, weight_BLV)

    def model(self, method: str = "lora") -> nn.Module:
        model = lc.attach(self.build(), method, tasks=[f"task {index}" for index in range(self.num_tasks)], r=8)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
        return model

    def losses_by_sample(self, model: nn.Module, rows: slice = slice(None), *, ours: bool = True) -> Tensor:
        with lc.on_task(model, self.task_ids_B[rows]) if ours else nullcontext():
            output_BLV: Tensor = model(inputs_embeds=self.embeddings_BLD[rows])[0]
        return (output_BLV * self.weight_BLV[rows]).sum((1, 2))

    def losses_by_task(self, model: nn.Module, *, ours: bool = True) -> Tensor:
        return self.losses_by_sample(model, ours=ours).view(self.num_tasks, -1).sum(1)

    def rows_of(self, task: int) -> slice:
        each = len(self.task_ids_B) // self.num_tasks
        return slice(task * each, (task + 1) * each)

    def stepping(self, model: nn.Module, gradients: Callable[[], None]) -> Step:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)

        def step() -> None:
            gradients()
            optimizer.step()
            optimizer.zero_grad()

        return step

    def joint(self) -> Step:
        model = self.model()
        return self.stepping(model, lambda: self.losses_by_task(model).sum().backward())

    def one_pass(self) -> Step:
        model = self.model()
        surgeon = Surgeon(model, RULE)

        def gradients() -> None:
            self.losses_by_task(model).sum().backward()
            surgeon.operate()

        return self.stepping(model, gradients)

    def micro_batches(self) -> Step:
        model = self.model()
        surgeon = Surgeon(model, RULE, collect="micro_batches")

        def gradients() -> None:
            for task in range(self.num_tasks):
                self.losses_by_sample(model, self.rows_of(task)).sum().backward()
                surgeon.gradients.end_of(task)  # type: ignore[attr-defined]
            surgeon.operate()

        return self.stepping(model, gradients)

    def separate(self) -> Step:
        model = self.model()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

        def gradients() -> None:
            losses_T = self.losses_by_task(model)
            rows = [torch.autograd.grad(loss, trained, retain_graph=True) for loss in losses_T]
            for parameter, parts in zip(trained, zip(*rows, strict=True), strict=True):
                stacked_TP = torch.stack(parts).flatten(1)
                weights_T = RULE.weights((stacked_TP @ stacked_TP.t())[None], 0)[0]
                parameter.grad = (weights_T @ stacked_TP).view_as(parameter)

        return self.stepping(model, gradients)

    def autojac(self) -> Step:
        from torchjd import autojac
        from torchjd.aggregation import PCGrad

        model, rule = self.model("peft_lora"), PCGrad()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

        def gradients() -> None:
            autojac.backward(self.losses_by_task(model, ours=False), inputs=trained, parallel_chunk_size=1)
            autojac.jac_to_grad(trained, rule)

        return self.stepping(model, gradients)

    def engine(self) -> Step:
        from torchjd.aggregation import PCGradWeighting
        from torchjd.autogram import Engine

        model, rule = self.model("peft_lora"), PCGradWeighting()
        layers = [module for name, module in model.named_modules() if isinstance(module, nn.Linear) and "lora_" in name]
        engine = Engine(*layers, batch_dim=0)
        sums_TB = nn.functional.one_hot(self.task_ids_B, self.num_tasks).t().float()

        def gradients() -> None:
            losses_B = self.losses_by_sample(model, ours=False)
            weights_T = rule(sums_TB @ engine.compute_gramian(losses_B) @ sums_TB.t())
            losses_B.backward(weights_T @ sums_TB)

        return self.stepping(model, gradients)


def benchmark(bench: Bench, options: Options) -> Iterator[Result]:
    num_tasks = bench.num_tasks
    steps = {"joint": bench.joint(), "one_pass": bench.one_pass()}
    if num_tasks <= 8:
        steps["micro_batches"] = bench.micro_batches()
        if not options.quick or num_tasks == 4:
            steps |= {
                "T x grad": bench.separate(),
                "TorchJD autojac": bench.autojac(),
                "TorchJD Engine": bench.engine(),
            }
    rounds = interleave(steps, num_pairs=15)
    bound = 1.20 if num_tasks > 8 else 1.10
    for case in list(steps)[1:]:
        yield Result(f"step: {case} / joint", rounds.ratio(case, "joint"), bound=bound if case == "one_pass" else None)

    model = bench.model()
    plain = saved_bytes_of(model, lambda: bench.losses_by_task(model))
    surgeon = Surgeon(model, RULE)
    probed = saved_bytes_of(model, lambda: bench.losses_by_task(model))
    yield Result("saved: one_pass / joint", probed / plain, bound=1.15)
    leaves = [
        leaf for a in surgeon.gradients.adapters.values() if a.probes for leaf in (a.probes.inner_TXD, a.probes.up_TOS)
    ]
    yield Result("buffer with a task axis", 2 * sum(leaf.nbytes for leaf in leaves) / 2**20, unit="MiB")


ARCHITECTURES = {architecture.__name__: architecture for architecture in (llama, minilm)}


def rows(options: Options, model: str | None) -> Iterator[Result]:
    for architecture in ARCHITECTURES.values() if model is None else (ARCHITECTURES[model],):
        for num_tasks in (4, 8, 32) if options.quick else (2, 4, 8, 32):
            bench = Bench.make(architecture, num_tasks, options.quick)
            for row in benchmark(bench, options):
                yield replace(row, case=f"{bench.name} T={num_tasks} {row.case}")


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--model", choices=ARCHITECTURES, help="one of the two alone")
    chosen = parser.parse_args()
    options = Options(chosen.quick, chosen.json)
    torch.set_num_threads(2)
    return report(rows(options, chosen.model), options)


if __name__ == "__main__":
    raise SystemExit(main())
