"""A recipe's words as the objects that training takes: the mixture, and transformers' TrainingArguments."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainingArguments

from lorachord.data.mixture import TaskMixture
from lorachord.runs.recipe import Recipe


def ranks() -> PartialState:
    """This process among all, by torchrun's or accelerate's environment."""
    return PartialState(cpu=not torch.accelerator.is_available())


def autocast(recipe: Recipe) -> torch.autocast:
    """The precision that the Trainer computes in, for predictions outside it."""
    return autocast_to(recipe.training.precision)


def autocast_to(precision: str) -> torch.autocast:
    """The same for `training.precision` alone."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device.type if device else "cpu", dtype, enabled=dtype is not None)


def mixture_of(recipe: Recipe, sizes: Sequence[int], rank: int = 0, world_size: int = 1) -> TaskMixture:
    """The batches of one rank.

    Raises:
        ValueError: a batch that cannot hold what it must, or does not divide among the ranks.
    """
    part, tasks = recipe.mixture, recipe.tasks
    # A forecast may know some of the tasks alone.
    learned = tasks.learned() if tasks.learn is not None and len(sizes) == len(tasks.chosen()) else None
    return TaskMixture(
        sizes,
        batch_size=recipe.training.batch_size // recipe.training.accumulation,
        sampling=part.sampling,
        temperature=part.temperature,
        batches=part.batches,
        every_task=part.every_task,
        # Rounded up: an epoch has at least as many places as there are rows.
        drop_last=False,
        seed=recipe.seed,
        learned=learned,
        rank=rank,
        world_size=world_size,
    )


def training_arguments(recipe: Recipe, checkpoints: Path) -> TrainingArguments:
    """transformers' arguments.

    Args:
        checkpoints: the folder for checkpoints.
    """
    part = recipe.training
    choosing = part.eval_every is not None
    every = part.eval_every if part.eval_every is not None else part.save_every
    length = {"max_steps": part.max_steps} if part.max_steps is not None else {"num_train_epochs": part.epochs}
    # Given only where wanted: later versions of transformers have another name for it, and warn of this one.
    recomputing: dict[str, Any] = (
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
        if part.gradient_checkpointing
        else {}
    )
    return TrainingArguments(
        output_dir=str(checkpoints),
        **length,
        per_device_train_batch_size=part.batch_size // part.accumulation // ranks().num_processes,
        per_device_eval_batch_size=recipe.evaluation.batch_size,
        gradient_accumulation_steps=part.accumulation,
        learning_rate=part.learning_rate,
        lr_scheduler_type=part.schedule if part.schedule != "constant" else "constant_with_warmup",
        warmup_steps=part.warmup,
        weight_decay=part.weight_decay,
        max_grad_norm=part.max_grad_norm,
        bf16=part.precision == "bf16",
        fp16=part.precision == "fp16",
        **recomputing,
        logging_steps=part.log_every,
        logging_first_step=True,
        eval_strategy="steps" if choosing else "no",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=1,
        # How long early stopping has waited.
        restore_callback_states_from_checkpoint=True,
        load_best_model_at_end=choosing,
        metric_for_best_model="eval_mean" if choosing else None,
        greater_is_better=True if choosing else None,
        # Its event files belong in the run folder: see train.py.
        report_to=[name for name in part.report_to if name != "tensorboard"],
        run_name=part.run_name or checkpoints.absolute().parent.name,
        project=part.project,
        seed=recipe.seed,
        # Said outright, or several processes without a GPU do not find each other.
        use_cpu=not torch.accelerator.is_available(),
        disable_tqdm=not sys.stderr.isatty(),
    )
