"""The parts of a recipe: frozen dataclasses that pydantic checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, replace
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from lorachord.data.lab import Lab, lab_contradiction, lab_dominance
from lorachord.data.suites import get_suite
from lorachord.data.task import Task, check_tasks
from lorachord.messages import suggest

STRICT = ConfigDict(extra="forbid", strict=True)
Positive = Annotated[int, Field(ge=1, le=10**12)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelPart:
    """
    Args:
        name: a local folder, a packaged model (`lorachord models` lists them), or a name on the hub: `hub:owner/name`,
            or `owner/name` where there is no folder `owner`. Paths start from the recipe's own folder.
        kind: `encoder` (a sequence classifier with heads) or `decoder` (writes its answers).
        heads: of an encoder: `per_task`, or one `shared` by all, which their widths must allow. Default per_task.
        dtype: of the frozen weights. Default float32; adapters are float32 always.
        gguf_file: the file to convert, where `name` is a folder with GGUF files.
        max_length: tokens of a row at most. Default 128.
        chat_template: a decoder's, for tasks of the kind chat: a template or its file. Default: the tokenizer's.
    """

    name: str
    kind: Literal["encoder", "decoder"]
    heads: Literal["per_task", "shared"] = "per_task"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    gguf_file: str | None = None
    max_length: Positive = 128
    chat_template: str | None = None

    def __post_init__(self) -> None:
        for key in ("chat_template", "gguf_file") if self.kind == "encoder" else ():
            if getattr(self, key) is not None:
                raise ValueError(f"{key} is for decoders.")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LabPart:
    """Generated tasks; see `data/lab.py`.

    Args:
        name: `lab-contradiction` or `lab-dominance`.
        k: probability of a text on which the tasks disagree. Default 0.5.
        cue: of lab-contradiction, the probability that the place of a text says the task. Default 0.
        num_tasks: of lab-contradiction, 64 at most, and 8 with a cue. Default 4; lab-dominance has 2.
        num_train, num_dev: texts. Defaults 2000 and 1000.
        seed: of the texts. Default 0.
    """

    name: Literal["lab-contradiction", "lab-dominance"]
    k: Share = 0.5
    cue: Share = 0.0
    num_tasks: Annotated[int, Field(ge=1, le=64)] = 4
    num_train: Positive = 2000
    num_dev: Positive = 1000
    seed: Seed = 0

    def __post_init__(self) -> None:
        if self.cue and self.name == "lab-dominance":
            raise ValueError("cue is for lab-contradiction: the texts of lab-dominance all say the task.")

    def generate(self) -> Lab:
        """The tasks and their rows."""
        sizes = {"k": self.k, "seed": self.seed, "num_train": self.num_train, "num_dev": self.num_dev}
        if self.name == "lab-dominance":
            return lab_dominance(**sizes)  # type: ignore[arg-type]
        return lab_contradiction(num_tasks=self.num_tasks, cue=self.cue, **sizes)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TasksPart:
    """One of `suite`, `own` and `lab`.

    Args:
        suite: a named suite: glue, commonsense, superni.
        only: names of the tasks to take of these, in this order. Default: all.
        own: tasks in full. `labels` may be a file with a name a line, or be left out: then they are the texts that are
            labels in any of the task's splits, in sorted order.
        lab: generated tasks.
        max_rows: of each task, for train and val together; or by task, as in {mrpc: 200}. Default: all.
        name_in_text: put each task's name before its texts, as in "team: the parcel is late". Default false.
        learn: names of the tasks whose rows are trained on; the others are scored alone. Default: all.
        weights: of tasks' losses, by name. Default: 1 each, or what the lab prescribes.
        seed: of the choice of rows and of val. Default 0; kept while a run's own seed varies, so that seeds differ in
            training alone.
    """

    suite: str | None = None
    only: tuple[str, ...] | None = None
    own: tuple[Task, ...] = ()
    lab: LabPart | None = None
    max_rows: Positive | dict[str, Positive] | None = None
    name_in_text: bool = False
    learn: tuple[str, ...] | None = None
    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = field(default_factory=dict)
    seed: Seed = 0

    def __post_init__(self) -> None:
        given = [name for name in ("suite", "own", "lab") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"give one of suite, own and lab; found {' and '.join(given) or 'none'}.")
        known = {task.name: task for task in self._all()}
        for name in self.only or ():
            if name not in known:
                raise ValueError(f"only names {name!r}, which is not among these tasks. {suggest(name, known)}")
        for name in self.max_rows if isinstance(self.max_rows, dict) else ():
            if name not in known:
                raise ValueError(f"max_rows names {name!r}, which is not among these tasks. {suggest(name, known)}")
        chosen = [task.name for task in self.chosen()]
        if self.learn is not None and not self.learn:
            raise ValueError("learn names no task; leave it out to learn all.")
        for name in self.learn or ():
            if name not in chosen:
                raise ValueError(f"learn names {name!r}, which is not among these tasks. {suggest(name, chosen)}")

    def learned(self) -> list[int]:
        """The indices of the tasks whose rows are trained on."""
        names = [task.name for task in self.chosen()]
        return [index for index, name in enumerate(names) if self.learn is None or name in self.learn]

    def _all(self) -> Sequence[Task]:
        if self.lab is not None:
            return self.lab.generate().tasks
        return get_suite(self.suite) if self.suite else self.own

    def chosen(self) -> tuple[Task, ...]:
        """The tasks, `only`, `max_rows` and `name_in_text` applied; no data are read."""
        tasks = self._all()
        if self.only is not None:
            known = {task.name: task for task in tasks}
            tasks = [known[name] for name in self.only]
        check_tasks(tasks)
        if isinstance(self.max_rows, dict):
            tasks = [replace(task, max_rows=self.max_rows.get(task.name, task.max_rows)) for task in tasks]
        elif self.max_rows is not None:
            tasks = [replace(task, max_rows=self.max_rows) for task in tasks]
        if self.name_in_text:
            tasks = [replace(task, prefix=f"{task.name}: ") for task in tasks]
        return tuple(tasks)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MixturePart:
    """How batches are drawn; see `data.schedule.Schedule`.

    Args:
        sampling: how often a task's rows are drawn: as many as it has (proportional, the default), to the power
            1/temperature (temperature), as often as any task's (uniform), or in turn (round_robin).
        temperature: of temperature sampling; the larger, the nearer to uniform. Default 2.
        batches: of several tasks (`mixed`, the default), or each of one (`one_task`).
        every_task: whether every batch must hold every task. Default false.
    """

    sampling: Literal["proportional", "temperature", "uniform", "round_robin"] = "proportional"
    temperature: Annotated[float, Field(gt=0)] = 2.0
    batches: Literal["mixed", "one_task"] = "mixed"
    every_task: bool = False


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainingPart:
    """
    Args:
        epochs: passes over the rows of all tasks together. Default 3, unless `max_steps` is given.
        max_steps: optimiser steps, in place of epochs. With 0 the base is scored as it is, with new heads.
        batch_size: rows of an optimiser step, over all ranks and accumulated batches. Default 32.
        accumulation: how many batches these are split into. Default 1.
        learning_rate: peak. Default 1e-3.
        schedule: linear (default), cosine or constant, after the warm-up.
        warmup: share of the steps. Default 0.06.
        weight_decay: of AdamW. Default 0.
        max_grad_norm: of clipping. Default 1.
        precision: float32 (default), or autocast to bf16 or fp16.
        gradient_checkpointing: recompute activations in the backward pass. Default false.
        compile: compile the model's blocks with inductor, which takes a minute and a C++ compiler. Default false.
        log_every: steps. Default 10.
        eval_every: score val every so many steps, and keep the best adapter in the end. Default: never.
        patience: stop after so many evaluations without a better mean. Default: never; needs `eval_every`.
        save_every: steps between checkpoints, from which --resume goes on. Default 200, or `eval_every` if given.
        max_bad_steps: steps with a loss or a gradient that is not finite to skip before the run ends. Default 10.
        order_seed: of mode `sequence`, the seed of the tasks' order. Default: the run's own.
        report_to: integrations of transformers, such as tensorboard; they get the final scores too. Default none.
        run_name: of the run there. Default: the name of its folder.
        project: of the run there. Default lorachord.
    """

    epochs: Positive | None = None
    max_steps: Annotated[int, Field(ge=0)] | None = None
    batch_size: Positive = 32
    accumulation: Positive = 1
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.06
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    gradient_checkpointing: bool = False
    compile: bool = False
    log_every: Positive = 10
    eval_every: Positive | None = None
    patience: Positive | None = None
    save_every: Positive = 200
    max_bad_steps: Annotated[int, Field(ge=0)] = 10
    order_seed: Seed | None = None
    report_to: tuple[str, ...] = ()
    run_name: str | None = None
    project: str = "lorachord"

    def __post_init__(self) -> None:
        if self.epochs is not None and self.max_steps is not None:
            raise ValueError("epochs and max_steps exclude each other: set one of them to null.")
        if self.epochs is None and self.max_steps is None:
            object.__setattr__(self, "epochs", 3)
        if self.batch_size % self.accumulation:
            raise ValueError(f"batch_size {self.batch_size} does not split into {self.accumulation} equal batches.")
        if self.compile and self.gradient_checkpointing:
            raise ValueError("compile and gradient_checkpointing exclude each other: leave one of them out.")
        if self.patience is not None and self.eval_every is None:
            raise ValueError("patience counts evaluations on val: give eval_every as well.")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluationPart:
    """
    Args:
        max_rows: of each task, drawn with the tasks' seed, for every split that is scored. Default: all.
        batch_size: examples at a time. Default 64.
        max_new_tokens: of freely written answers. Default 64.
        max_tokens: tokens whose logits a decoder makes at a time, where it scores options; it bounds memory. Default:
            as many as take 256 MB with the model's vocabulary.
    """

    max_rows: Positive | None = None
    batch_size: Positive = 64
    max_new_tokens: Positive = 64
    max_tokens: Positive | None = None
