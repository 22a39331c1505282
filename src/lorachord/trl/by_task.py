"""What TRL's trainers over several tasks share: data sets by task, the steps, and losses by task in evaluation."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import torch
import torch.distributed as dist
from datasets import Dataset  # type: ignore[import-untyped]
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainingArguments

from lorachord.balance.base import Balance
from lorachord.balance.make import check_balance, make_balance
from lorachord.core.registry import get_method
from lorachord.data.mixture import MixedDataset, TaskMixture
from lorachord.families.by_prompt import PromptLevel
from lorachord.surgery.surgeon import Surgeon, check_surgery
from lorachord.training.bad_numbers import MAX_BAD_STEPS
from lorachord.training.sharded import check_ranks
from lorachord.training.steps_by_task import StepsByTask
from lorachord.trl.rows import Sets, by_task, is_chat
from lorachord.tuner.peft_config import LorachordConfig
from lorachord.tuner.saved_calibration import require_none

REFUSED = ("data_collator", "compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics", "formatting_func")


class SetsByTask(StepsByTask):
    """The multi-task parts of one of TRL's trainers, which stands behind it in a class.

    Args:
        model: a causal language model, its name or folder, with an adapter or with `peft_config`.
        args: TRL's own, as for the trainer behind it.
        train_dataset: the data set of each task by its name, with any of the columns that TRL knows; or one Dataset
            whose column `task` names the task of each row.
        eval_dataset: likewise, for `evaluate`; some of the tasks are enough. Default: none.
        processing_class: the tokenizer. Default: the model's own.
        peft_config: of the adapter: `lorachord.LorachordConfig.build(method, tasks=[...], ...)`, or one of PEFT's.
        chat_templates: of single tasks, by name: a template in place of the tokenizer's. Default: none.
        mixture: how batches are drawn: `sampling`, `temperature`, `batches`, `every_task`; see `TaskMixture`. Default:
            every row once an epoch, in mixed batches.
        task_weights: of the tasks' losses, by name. Default: 1 each.
        surgery: a rule's name, or its settings as in `lorachord.Surgeon` (`rule`, `granularity`, ...). Default: none.
        balance: the name of a balance of the losses, or `name` with its options; see `balance/make.py`. Default: none.
        max_bad_steps: steps with a loss or gradient that is not finite to skip before a FloatingPointError. Default 10.
        **keywords: the trainer's own. Refused are those that take the place of a loss by task: `data_collator`,
            `compute_loss_func`, `compute_metrics`, `preprocess_logits_for_metrics`, `formatting_func`.

    Raises:
        ValueError: tasks, rows, columns, chats, adapter or settings that do not fit each other; before a model is read.
    """

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: TrainingArguments,
        *,
        train_dataset: Sets,
        eval_dataset: Sets | None = None,
        processing_class: Any = None,
        peft_config: PeftConfig | None = None,
        chat_templates: Mapping[str, str] | None = None,
        mixture: Mapping[str, Any] | None = None,
        task_weights: Mapping[str, float] | None = None,
        surgery: str | Mapping[str, Any] | None = None,
        balance: str | Mapping[str, Any] | None = None,
        max_bad_steps: int = MAX_BAD_STEPS,
        **keywords: Any,
    ) -> None:
        for name in REFUSED:
            if keywords.pop(name, None) is not None:
                raise ValueError(f"{type(self).__name__} makes batches and losses by task itself: leave out {name}.")
        self.mixture_options, self.chat_templates = dict(mixture or {}), dict(chat_templates or {})
        config = _adapter(model, peft_config)
        own = config.tasks if isinstance(config, LorachordConfig) else None
        self.sets = by_task(train_dataset, own, "train_dataset")
        names = list(self.sets)
        given = {} if eval_dataset is None else by_task(eval_dataset, names, "eval_dataset", all_tasks=False)
        for what, values in (("chat_templates", self.chat_templates), ("task_weights", task_weights or {})):
            for name in values:
                if name not in names:
                    raise ValueError(f"{what} names {name!r}, which is none of the tasks {', '.join(names)}.")
        for sets in (self.sets, given):
            for name, rows in sets.items():
                self.check_rows(name, rows, args)
                self._check_template(name, rows, args, processing_class)
        self._check_adapter(config, args)
        surgery = {"rule": surgery} if isinstance(surgery, str) else surgery
        balance = {"name": balance} if isinstance(balance, str) else balance
        if surgery is not None:
            check_surgery(**surgery)
        if balance is not None:
            check_balance(tasks=names, **balance)
        if isinstance(peft_config, LorachordConfig) and peft_config.tasks is None:
            peft_config.tasks = names
        self.begin_steps(
            args,
            names,
            task_weights=[(task_weights or {}).get(name, 1.0) for name in names],
            balance=_made(balance, names),
            max_bad_steps=max_bad_steps,
        )
        self._prepares_train = True
        super().__init__(  # type: ignore[call-arg]
            model=model,
            args=args,
            train_dataset=self.sample(args),
            eval_dataset=given or None,
            processing_class=processing_class,
            peft_config=peft_config,
            **keywords,
        )
        trainer: Any = self
        self.eval_data: dict[str, Dataset] = trainer.eval_dataset or {}
        trainer.data_collator = self.collator()
        if surgery is not None:
            check_ranks(trainer.accelerator, surgery=True)
            self.surgeon = Surgeon(trainer.model, num_tasks=len(names), **surgery)
        self.follow_steps()

    @abstractmethod
    def check_rows(self, name: str, rows: Dataset, args: Any) -> None:
        """Whether a task's rows have the columns that they need."""

    @abstractmethod
    def collator(self) -> Any:
        """TRL's collator with the tasks of a batch, when the trainer has made its own."""

    @abstractmethod
    def prepared(self, name: str, rows: Dataset, given: Sequence[Any], *, trains: bool) -> Dataset:
        """A task's rows as tokens.

        Args:
            given: what TRL gives its `_prepare_dataset` behind the rows.
            trains: whether the rows are for training.
        """

    def sample(self, args: Any) -> Dataset:
        """The data set whose first row TRL looks at to settle its arguments."""
        return next(iter(self.sets.values()))

    def merged(self, sets: Mapping[str, Dataset], args: Any) -> tuple[Dataset, ...]:
        """The training rows to draw from, one data set a task unless rows hold several."""
        return tuple(sets.values())

    def _prepare_dataset(self, dataset: Dataset, *given: Any) -> Dataset:
        # TRL asks for the training rows first, and then for those of each task to evaluate.
        if not self._prepares_train:
            return self.prepared(given[-1], dataset, given, trains=False)
        self._prepares_train = False
        args = given[1]
        sets = {name: self.prepared(name, rows, given, trains=True) for name, rows in self.sets.items()}
        for name, rows in sets.items():
            if not len(rows):
                raise ValueError(
                    f"Task {name!r} has no row with a token to learn within max_length {args.max_length}: raise it."
                )
        merged = self.merged(sets, args)
        self.mix(merged, self._mixture([len(rows) for rows in merged], args), args)
        return merged[0]

    def _mixture(self, sizes: Sequence[int], args: TrainingArguments) -> TaskMixture:
        size, ranks = args.per_device_train_batch_size, args.world_size
        settings: dict[str, Any] = {"drop_last": False, "seed": args.seed, **self.mixture_options}
        return TaskMixture(sizes, batch_size=size * ranks, rank=args.process_index, world_size=ranks, **settings)

    def evaluate(
        self,
        eval_dataset: Sets | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Each task's mean loss, their mean and the worst; logged, and shown to the callbacks.

        `eval_<task>_loss` is the mean over all of the task's counted tokens (or pairs), on all ranks. `eval_loss` is
        their mean and `eval_worst_loss` the largest. TRL's own metrics are there for each task too.

        Args:
            eval_dataset: as the trainer's. Default: the trainer's own.

        Raises:
            ValueError: there are no rows to evaluate.
        """
        trainer: Any = self
        sets = self.eval_data if eval_dataset is None else self._fresh(eval_dataset)
        if not sets:
            raise ValueError("There is nothing to evaluate: give the trainer or evaluate() an eval_dataset.")
        was_training, metrics, losses = trainer.model.training, dict[str, float](), []
        trainer.model.eval()
        try:
            for name, rows in sets.items():
                trainer._metrics["eval"].clear()
                losses.append(self._loss(self.task_names.index(name), rows))
                metrics[f"{metric_key_prefix}_{name}_loss"] = losses[-1]
                for key, values in trainer._metrics["eval"].items():
                    if key != "num_tokens":
                        metrics[f"{metric_key_prefix}_{name}_{key}"] = sum(values) / len(values)
            trainer._metrics["eval"].clear()
            metrics[f"{metric_key_prefix}_loss"] = sum(losses) / len(losses)
            metrics[f"{metric_key_prefix}_worst_loss"] = max(losses)
            self.log(metrics)
        finally:
            trainer.model.train(was_training)
        trainer.control = trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, metrics)
        return metrics

    def _fresh(self, sets: Sets) -> dict[str, Dataset]:
        trainer: Any = self
        found = by_task(sets, self.task_names, "eval_dataset", all_tasks=False)
        for name, rows in found.items():
            self.check_rows(name, rows, trainer.args)
        return {name: self.prepared(name, rows, self.preparing(name), trains=False) for name, rows in found.items()}

    @abstractmethod
    def preparing(self, name: str) -> tuple[Any, ...]:
        """What `prepared` is given for rows that are evaluated later."""

    @torch.no_grad()
    def _loss(self, task: int, rows: Dataset) -> float:
        """The mean loss of a task's rows over all ranks, each of which reads its share."""
        trainer: Any = self
        args = trainer.args
        size, ranks = args.per_device_eval_batch_size, args.world_size
        mine = range(args.process_index, len(rows), ranks)
        mixed = MixedDataset([rows] * len(self.task_names))
        sums_2 = torch.zeros(2, dtype=torch.float64, device="cpu")
        # As many passes on every rank, since a sharded model's are in step.
        for start in range(0, ceil(len(rows) / ranks), size):
            chosen = mine[start : start + size]
            batch = trainer.data_collator([mixed[task, row] for row in chosen or (0,)])
            inputs = trainer._prepare_inputs(batch)
            with trainer.compute_loss_context_manager():
                losses, _ = self.task_losses(trainer.model, inputs)
            count = float(self.counts(inputs)[task]) if chosen else 0.0
            sums_2 += torch.tensor([float(losses[task]) * count, count], dtype=torch.float64)
        if dist.is_initialized():
            total_2 = sums_2.float().to(args.device)
            dist.all_reduce(total_2)
            sums_2 = total_2.double().cpu()
        return float(sums_2[0] / sums_2[1].clamp_min(1))

    def _check_template(self, name: str, rows: Dataset, args: Any, processing_class: Any) -> None:
        has_own = name in self.chat_templates or getattr(args, "chat_template_path", None) is not None
        if is_chat(rows) and processing_class is not None and not has_own and not processing_class.chat_template:
            raise ValueError(
                f"Task {name!r} has conversations, and the tokenizer has no chat template: set "
                f"tokenizer.chat_template, or give chat_templates={{{name!r}: '...'}}."
            )

    def _check_adapter(self, config: PeftConfig | None, args: Any) -> None:
        if not isinstance(config, LorachordConfig):
            return
        packed = getattr(args, "packing", False) or getattr(args, "padding_free", False)
        if packed and issubclass(get_method(config.method), PromptLevel):
            raise ValueError(
                f"{config.method} chooses once for each prompt, and a packed row holds several: set packing=False and "
                "padding_free=False."
            )


def _adapter(model: Any, peft_config: PeftConfig | None) -> PeftConfig | None:
    """The config of the adapter that will be trained.

    Raises:
        ValueError: there is none, or its method must be fitted first.
    """
    if peft_config is not None:
        if isinstance(peft_config, LorachordConfig):
            require_none(peft_config)
        return peft_config
    if isinstance(model, PeftModel):
        return model.peft_config[model.active_adapter]
    if isinstance(model, nn.Module) and getattr(model, "peft_config", None):
        return None
    raise ValueError(
        "There is no adapter: give peft_config=lorachord.LorachordConfig.build('mtl_lora', tasks=[...]), or a model "
        "with one (lorachord.attach)."
    )


def _made(balance: Mapping[str, Any] | None, names: Sequence[str]) -> Balance | None:
    return None if balance is None else make_balance(tasks=names, **balance)


def task_means(losses: Tensor, counted: Tensor, tasks: Tensor) -> dict[int, Tensor]:
    """The mean of the losses of each task that occurs, by its index; all three of one shape."""
    found = {}
    for index in tasks.unique().tolist():
        own = counted & (tasks == index)
        found[index] = losses[own].sum() / own.sum().clamp_min(1)
    return found
