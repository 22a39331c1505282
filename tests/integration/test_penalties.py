"""Penalties of methods: asked for in a loop, or said to be missing; added and logged by a trainer, each kind apart."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

import lorachord as lc
from lorachord.tuner import penalties
from tests.integration.helpers import METHODS
from tests.tiny_data import own, rows, task_of, tokenizer
from tests.tiny_models import tiny, token_ids

MISSING = "has a penalty, and this loop leaves it out.*MultiTaskTrainer"
PENALISED = pytest.mark.parametrize(
    ("method", "kinds"),
    [
        ("moelora", {"balance", "contrastive"}),
        ("mosld", {"balance"}),
        ("malora", {"balance"}),
        ("thanora", {"subspace"}),
    ],
)


def adapted(method: str, **options: Any) -> Any:
    return lc.attach(tiny("llama"), method, **{**METHODS[method], **options}).train()


def step(model: Any) -> torch.Tensor:
    return model(input_ids=token_ids()).logits.square().mean()


@PENALISED
def test_a_loop_that_never_asks_for_a_penalty_is_told_once(method: str, kinds: set[str]) -> None:
    model = adapted(method)
    step(model).backward()
    with pytest.warns(UserWarning, match=MISSING):
        step(model).backward()
    step(model).backward()


@PENALISED
def test_a_loop_that_asks_is_told_nothing_and_has_each_kind_by_name(method: str, kinds: set[str]) -> None:
    model = adapted(method)
    for _ in range(3):
        loss = step(model) + lc.penalty(model)
        assert penalties(model).keys() == kinds
        torch.testing.assert_close(lc.penalty(model), torch.stack([*penalties(model).values()]).sum())
        loss.backward()


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("lora", {}),
        ("moelora", {"balance": 0.0, "contrastive": 0.0}),
        ("mosld", {"balance": 0.0}),
        ("thanora", {"spr": 0.0}),
    ],
)
def test_nothing_is_said_where_nothing_is_missing(method: str, options: dict[str, Any]) -> None:
    model = adapted(method, **options)
    for _ in range(3):
        step(model).backward()


def test_passes_that_train_nothing_do_not_count() -> None:
    model = adapted("moelora")
    for _ in range(2):
        with torch.no_grad():
            step(model)
        step(model.eval())
        model.train()
        with model.disable_adapter():
            step(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(model).backward()


def test_several_batches_of_one_task_each_are_one_pass() -> None:
    model = adapted("thanora")
    surgeon = lc.Surgeon(model, collect="micro_batches")
    for _ in range(2):
        for task in (0, 1):
            with lc.on_task(model, task):
                step(model).backward()
            surgeon.gradients.end_of(task)
        lc.penalty(model).backward()
        surgeon.operate()


def test_a_trainer_adds_penalties_and_logs_each_kind_apart(tmp_path: Path) -> None:
    tasks = [task_of(fields) for fields in own("colour", "size")]
    base = lc.add_heads(tiny("bert"), {task.name: task.num_outputs for task in tasks})
    model = lc.attach(base, "moelora", **METHODS["moelora"])
    settings = dict(max_steps=2, logging_steps=1, report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True)
    trainer = lc.MultiTaskTrainer(
        model,
        TrainingArguments(str(tmp_path), **settings),
        tokenizer=tokenizer(),
        tasks=tasks,
        train_data={task.name: rows(task, 40, seed) for seed, task in enumerate(tasks)},
        max_length=32,
    )
    trainer.train()
    for entry in trainer.state.log_history[:2]:
        parts = [entry[f"penalty_{kind}"] for kind in ("balance", "contrastive")]
        assert min(parts) > 0
        tasks_mean = (entry["loss_colour"] + entry["loss_size"]) / 2
        assert entry["loss"] == pytest.approx(tasks_mean + sum(parts), rel=1e-4)
