"""Training through compiled blocks: the same losses and gradients, by whole graphs, and few of them."""

from pathlib import Path
from shutil import which
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

import lorachord as lc
from lorachord.core.registry import all_methods
from lorachord.training.compiled import CompiledBlocks
from lorachord.training.trainer import MultiTaskTrainer
from tests import tiny_data
from tests.tiny_models import perturb, tiny, token_ids

# Naming torchao's enums costs torch.compile a warning.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {},
    "multilora": {"align": 0.1},
    "thanora": {"r": 6, "init": "kaiming", "allocation": "uniform"},
    "mtl_lora": {"align": 0.1},
    "allot": {"choose": "all"},
    "hydralora": {"balance": 0.1, "num_experts": 3},
    "mosld": {"num_experts": 3},
    "mode": {"z": 0.1},
    "malora": {},
    "moelora": {"contrastive": 0.5, "num_experts": 3},
    "comol": {"balance": 0.1},
    "mixlora": {"r": 2, "num_experts": 7},
    "mor1e": {"r1": 3, "r2": 3},
}
TASKS = ("a", "b", "c")
BATCHES = ["aabccc", "abbbcc", "bbbbbb", "accca", "aabbbcc", "abc"]
"""The first is not compiled. Tasks lie in other orders, and other numbers of rows have other lengths."""
SURGERY = ["lora", "mosld", "moelora", "mixlora"]
"""With a core's shared weight and without, by prompt, and with a weight that is not a parameter."""


def test_every_method_is_here() -> None:
    assert OPTIONS.keys() == {name for name, cls in all_methods().items() if cls.__module__.startswith("lorachord.")}


def adapted(method: str, architecture: str = "llama", **sizes: Any) -> Any:
    sizes = {"num_hidden_layers": 1, **sizes}
    base = tiny(architecture, **sizes)
    targets = ["q_proj", "down_proj"] if architecture == "llama" else ["query", "output.dense"]
    if architecture == "bert":
        base = lc.add_heads(base, {"a": 2, "b": 3, "c": 1})
    model = lc.attach(base, method, tasks=TASKS, target_modules=targets, **OPTIONS[method])
    if method == "mor1e":
        lc.fit_intuition(model, [{"input_ids": token_ids(num_samples=12, length=4, seed=5)}])
    perturb(model, 0.1)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.train()


Step = dict[str, torch.Tensor]


def steps(model: Any, blocks: CompiledBlocks | None, rule: str | None = None) -> list[Step]:
    """The loss and the gradients of each step."""
    surgeon = None if rule is None else lc.Surgeon(model, rule)
    optimizer, found = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01), []
    for number, tasks in enumerate(BATCHES):
        ids_BL = token_ids(num_samples=len(tasks), length=9 + number, seed=number)
        mask_BL = torch.ones_like(ids_BL)
        mask_BL[0, -2:] = 0
        with lc.on_task(model, list(tasks)):
            if blocks is None:
                logits = model(input_ids=ids_BL, attention_mask=mask_BL).logits
            else:
                with blocks.called(model):
                    logits = model(input_ids=ids_BL, attention_mask=mask_BL).logits
        # A class that a task does not have is far below all others.
        loss = torch.stack([(logits.clamp_min(-9)[row] ** 2).mean() * (1 + row) for row in range(len(tasks))]).mean()
        (loss + lc.penalty(model)).backward()
        if surgeon is not None:
            surgeon.operate()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found.append({"loss": loss.detach(), **gradients})
        optimizer.step()
        optimizer.zero_grad()
    return found


def check(method: str, backend: str, architecture: str = "llama", rule: str | None = None, **sizes: Any) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain, model = adapted(method, architecture, **sizes), adapted(method, architecture, **sizes)
    expected = steps(plain, None, rule)
    found = steps(model, CompiledBlocks(model, backend), rule)
    for own, wanted in zip(found, expected, strict=True):
        assert own.keys() == wanted.keys()
        for name, value in wanted.items():
            atol = 1e-5 * float(value.abs().max().clamp_min(1e-3))
            torch.testing.assert_close(own[name], value, rtol=1e-5, atol=atol, msg=lambda text, name=name: name + text)
    # Of five sizes: a batch of one task has a graph of its own, and so has a first block, which needs no gradient of
    # its input. And a size that is also the method's is taken for a constant once.
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert 0 < graphs <= 3 * min(model.config.num_hidden_layers, 2), graphs


# The trace of a router takes seconds.
@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[] if name == "mtl_lora" else pytest.mark.slow) for name in OPTIONS]
)
def test_every_method_is_compiled_into_few_whole_graphs_and_learns_the_same(method: str) -> None:
    check(method, "eager")


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[] if name == "lora" else pytest.mark.slow) for name in SURGERY]
)
def test_surgery_sees_the_same_gradients_of_each_task(method: str) -> None:
    check(method, "eager", rule="ortho_lora")


@pytest.mark.slow
def test_the_halves_of_a_tasks_samples_are_told_apart() -> None:
    check("hydralora", "eager", rule="significant")


@pytest.mark.slow
def test_heads_for_each_task_stay_beside_the_compiled_blocks() -> None:
    check("mtl_lora", "eager", "bert")


needs_compiler = pytest.mark.skipif(which("g++") is None, reason="inductor needs g++")


# Inductor takes 15 to 60 seconds for each.
@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "bert"])
@pytest.mark.parametrize("method", [name for name in OPTIONS if name != "mor1e"])
def test_inductor_learns_the_same(method: str, architecture: str) -> None:
    check(method, "inductor", architecture, num_hidden_layers=2)


@needs_compiler
@pytest.mark.slow
def test_inductor_leaves_surgery_the_same() -> None:
    check("lora", "inductor", rule="ortho_lora")


def test_a_method_that_would_be_compiled_for_each_size_is_refused() -> None:
    with pytest.raises(ValueError, match="mor1e cannot be compiled"):
        CompiledBlocks(adapted("mor1e"))


def test_a_model_is_as_it_was_behind_each_pass() -> None:
    model = adapted("lora")
    blocks = CompiledBlocks(model, "eager")
    for _ in range(2):
        with blocks.called(model), lc.on_task(model, "a"):
            model(input_ids=token_ids())
    assert all("forward" not in vars(block) for block in blocks.forwards)
    with pytest.raises(ValueError, match="none of the kind"), blocks.called(model):
        raise ValueError("none of the kind")
    assert all("forward" not in vars(block) for block in blocks.forwards)


def test_a_model_without_blocks_is_refused() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    with pytest.raises(ValueError, match="no repeated blocks"):
        CompiledBlocks(lc.attach(model, "lora", tasks=TASKS, target_modules=["0"]))


def test_compile_and_checkpointing_exclude_each_other(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        tiny_data.recipe(tiny_bert, "colour", training={"compile": True, "gradient_checkpointing": True})
    args = TrainingArguments(output_dir=str(tmp_path), gradient_checkpointing=True, use_cpu=True, report_to=[])
    task = tiny_data.task_of(tiny_data.own("colour")[0])
    model = lc.attach(tiny("bert", num_labels=2), "lora", tasks=["colour"])
    rows = {"colour": tiny_data.rows(task, 40, 0)}
    with pytest.raises(ValueError, match="exclude each other"):
        MultiTaskTrainer(model, args, tasks=[task], train_data=rows, tokenizer=tiny_data.tokenizer(), compile=True)
