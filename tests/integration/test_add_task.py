"""A task that comes later is learned, and to the old ones nothing happens."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import TrainingArguments

import lorachord as lc
from tests.integration.helpers import METHODS
from tests.tiny_data import own, rows, task_of, tokenizer
from tests.tiny_models import perturb, tiny, token_ids

OLD = ["a", "b", "a", "b"]
LEARNERS = pytest.mark.parametrize(
    ("method", "options"),
    [
        ("mtl_lora", {}),
        ("mtl_lora", {"transform": "diagonal", "unknown_task": "mean"}),
        ("mtl_lora", {"align": 0.1}),
        ("allot", {}),
    ],
)


def trained(method: str, architecture: str = "llama", base: nn.Module | None = None, **options: Any) -> PeftModel:
    base = tiny(architecture) if base is None else base
    model = lc.attach(base, method, **{**METHODS[method], **options})
    perturb(model, 0.3)
    return model.eval()


def logits(model: nn.Module, tasks: list[str], seed: int = 1) -> Tensor:
    with lc.on_task(model, tasks):
        found: Tensor = model(input_ids=token_ids(num_samples=len(tasks), seed=seed)).logits
    return found


def learn(model: nn.Module, tasks: list[str]) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05, weight_decay=0.0)
    for seed in range(5):
        loss = logits(model.train(), tasks, seed).square().mean() + lc.penalty(model)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


@LEARNERS
@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_old_tasks_predictions_stay_to_the_bit(method: str, options: dict[str, Any], architecture: str) -> None:
    model = trained(method, architecture, **options)
    before = logits(model, OLD)
    lc.add_task(model, "new")
    assert torch.equal(logits(model, OLD), before)
    new = logits(model, ["new"] * 4)
    # Batches of old and new rows.
    learn(model, ["a", "new", "new", "b"])
    assert torch.equal(logits(model, OLD), before)
    assert not torch.allclose(logits(model, ["new"] * 4), new)
    # And one more.
    new = logits(model, ["new"] * 4)
    lc.add_task(model, "newer")
    learn(model, ["newer"] * 4)
    assert torch.equal(logits(model, OLD), before)
    assert torch.equal(logits(model, ["new"] * 4), new)


def test_only_the_new_core_is_trained() -> None:
    model = lc.add_task(trained("mtl_lora", "bert"), "new")
    logits(model.train(), ["a", "new", "new", "b"]).square().mean().backward()
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {name.rpartition(".")[2] for name in found} == {"transform", "mixture"}
    for parameter in found.values():
        assert len(parameter) == 3
        assert not parameter.grad[:2].any()
        assert parameter.grad[2].any()


def test_it_is_saved_and_loaded_as_an_adapter_of_one_task_more(tmp_path: Path) -> None:
    model = lc.add_task(trained("mtl_lora"), "new")
    learn(model, ["new"] * 4)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny("llama"), tmp_path).eval()
    assert loaded.active_peft_config.tasks == ["a", "b", "new"]
    mixed = ["new", "a", "b", "new"]
    assert torch.equal(logits(loaded, mixed), logits(model, mixed))
    torch.testing.assert_close(
        lc.merge(model, task="new")(input_ids=token_ids()).logits, logits(loaded, ["new"] * 4), rtol=1e-4, atol=1e-5
    )


def test_a_trainer_with_weight_decay_leaves_the_old_tasks_and_their_heads_alone(tmp_path: Path) -> None:
    tasks = [task_of(fields) for fields in own("colour", "size", "choice")]
    old, late = tasks[:2], tasks[2]
    base = lc.add_heads(tiny("bert"), {task.name: task.num_outputs for task in old})
    model = trained("mtl_lora", base=base, tasks=[task.name for task in old])
    named = [task.name for task in old] * 2
    before = [logits(model, named)[:, : task.num_outputs] for task in old]
    lc.add_task(model, late.name, num_outputs=late.num_outputs)
    settings = dict(max_steps=4, weight_decay=0.5, learning_rate=0.1, report_to=[], save_strategy="no", use_cpu=True)
    trainer = lc.MultiTaskTrainer(
        model,
        TrainingArguments(str(tmp_path), disable_tqdm=True, **settings),
        tokenizer=tokenizer(),
        tasks=tasks,
        train_data={task.name: rows(task, 40, seed) for seed, task in enumerate(tasks)},
        max_length=32,
    )
    head = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad and "heads" in name}
    assert head
    assert all("choice" in name for name in head)
    trainer.train()
    model.eval()
    for task, expected in zip(old, before, strict=True):
        assert torch.equal(logits(model, named)[:, : task.num_outputs], expected)
    assert not any(torch.equal(model.get_parameter(name), value) for name, value in head.items())


@pytest.mark.parametrize(
    ("method", "task", "keywords", "message"),
    [
        ("lora", "new", {}, "fuse both .* or train again on all tasks' rows"),
        ("hydralora", "new", {}, "hydralora has no parameters of one task"),
        ("mtl_lora", "a", {}, "repeated: a"),
        ("mtl_lora", "new", {"num_outputs": 2}, "leave out num_outputs"),
    ],
)
def test_what_cannot_learn_another_task_says_what_would(
    method: str, task: str, keywords: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        lc.add_task(trained(method), task, **keywords)


def test_heads_per_task_ask_for_a_width() -> None:
    model = trained("mtl_lora", base=lc.add_heads(tiny("bert"), {"a": 2, "b": 3}))
    for keywords, message in (({}, "give num_outputs"), ({"num_outputs": 0}, "at least one output")):
        with pytest.raises(ValueError, match=message):
            lc.add_task(model, "new", **keywords)
