"""SentenceTransformerTrainer with a task for each of its data sets.

Shapes: T tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from datasets import Dataset, DatasetDict, IterableDatasetDict  # type: ignore[import-untyped]
from peft import PeftConfig
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.training_args import MultiDatasetBatchSamplers
from sentence_transformers.sentence_transformer import losses as library_losses
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lorachord.core.context import Mixing
from lorachord.core.registry import get_method
from lorachord.messages import suggest
from lorachord.sentence_transformers.adapted import adapter_of
from lorachord.surgery.surgeon import Surgeon, check_surgery
from lorachord.training.bad_numbers import MAX_BAD_STEPS
from lorachord.training.steps_by_task import StepsByTask
from lorachord.tuner import on_task, penalties
from lorachord.tuner.peft_config import LorachordConfig
from lorachord.tuner.saved_calibration import require_none

CACHED = (
    library_losses.CachedGISTEmbedLoss,
    library_losses.CachedMultipleNegativesRankingLoss,
    library_losses.CachedMultipleNegativesSymmetricRankingLoss,
)
NAME = "dataset_name"
"""Of a batch: sentence-transformers draws each from one data set."""


@final
class MultiTaskSentenceTransformerTrainer(StepsByTask, SentenceTransformerTrainer):
    """SentenceTransformerTrainer over several data sets, each a task with its own loss.

    A batch is of one data set, as the library draws it (`multi_dataset_batch_sampler`), and is embedded on its task.
    The step's loss is the task's, plus the adapter's penalties. The log has `loss_<task>` and each penalty;
    `evaluate` gives `eval_<task>_loss`, and the metrics of each task's evaluator.

    Args:
        model: with an adapter (`model.add_adapter(lorachord.LorachordConfig.build(...))`), or with `peft_config`.
        args: the library's own.
        train_dataset: the data set of each task by its name, with the columns that its loss reads.
        loss: of each task by its name, or one for all.
        eval_dataset: of some tasks, by name. Default: none.
        evaluator: of some tasks, by name; each sees the model on its task. Default: none.
        peft_config: of the adapter: `lorachord.LorachordConfig.build(method, tasks=[...], ...)`, or one of PEFT's.
        task_weights: of the tasks' losses, by name. Default: 1 each.
        surgery: a rule's name, or its settings as in `lorachord.Surgeon`. It needs a batch of every task in a step:
            `gradient_accumulation_steps` of the number of tasks, and `multi_dataset_batch_sampler="round_robin"`.
            Default: none.
        max_bad_steps: steps with a loss or gradient that is not finite to skip before a FloatingPointError. Default 10.
        **keywords: the trainer's own.

    Raises:
        ValueError: names that are no tasks, data sets of other tasks than the adapter's, a model without an adapter,
            surgery without a batch of every task in a step, or a cached loss where tasks count.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        args: SentenceTransformerTrainingArguments,
        *,
        train_dataset: Mapping[str, Dataset],
        loss: Mapping[str, nn.Module] | nn.Module,
        eval_dataset: Mapping[str, Dataset] | None = None,
        evaluator: Mapping[str, SentenceEvaluator] | None = None,
        peft_config: PeftConfig | None = None,
        task_weights: Mapping[str, float] | None = None,
        surgery: str | Mapping[str, Any] | None = None,
        max_bad_steps: int = MAX_BAD_STEPS,
        **keywords: Any,
    ) -> None:
        if not isinstance(train_dataset, Mapping):
            raise ValueError(
                f"train_dataset is a {type(train_dataset).__name__}; give the data set of each task: {{name: dataset}}."
            )
        config = peft_config if peft_config is not None else adapter_of(model)[2]
        own = config.tasks if isinstance(config, LorachordConfig) else None
        names = list(own or train_dataset)
        losses = loss if isinstance(loss, Mapping) else {}
        for what, given in (
            ("train_dataset", train_dataset),
            ("eval_dataset", eval_dataset or {}),
            ("loss", losses),
            ("evaluator", evaluator or {}),
            ("task_weights", task_weights or {}),
        ):
            for name in given:
                if name not in names:
                    raise ValueError(f"{what} names {name!r}, which is none of the tasks. {suggest(name, names)}")
        for what, given in (("train_dataset", train_dataset), *([("loss", losses)] if losses else [])):
            missing = [name for name in names if name not in given]
            if missing:
                raise ValueError(
                    f"{what} has nothing for {', '.join(missing)}; every task of the adapter needs its own."
                )
        surgery = {"rule": surgery} if isinstance(surgery, str) else surgery
        if surgery is not None:
            check_surgery(**surgery)
            _check_window(args, len(names))
        by_task = isinstance(config, LorachordConfig) and get_method(config.method).mixing is Mixing.TASK
        if by_task or surgery is not None:
            _refuse_cached(list(losses.values()) or [loss])
        if isinstance(config, LorachordConfig) and peft_config is not None:
            require_none(config)
            config.tasks = names
        if peft_config is not None:
            model.add_adapter(peft_config)
        self.begin_steps(
            args,
            names,
            task_weights=[(task_weights or {}).get(name, 1.0) for name in names],
            max_bad_steps=max_bad_steps,
        )
        super().__init__(
            model=model,
            args=args,
            train_dataset=DatasetDict({name: train_dataset[name] for name in names}),
            eval_dataset=None if eval_dataset is None else DatasetDict(eval_dataset),
            loss=dict(losses) or loss,
            evaluator=None if evaluator is None else _ByTask(evaluator),
            **keywords,
        )
        if surgery is not None:
            self.surgeon = Surgeon(model, num_tasks=len(names), **surgery)
        self.follow_steps()

    def should_dataset_name_column_be_added(self, dataset: Any, args: Any, loss: Any) -> bool:
        """Always: it names the task."""
        return isinstance(dataset, DatasetDict | IterableDatasetDict)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The library's, with its samplers."""
        loader: DataLoader[Any] = SentenceTransformerTrainer.get_train_dataloader(self)
        return loader

    def task_losses(self, model: nn.Module, inputs: Mapping[str, Any]) -> tuple[dict[int, Tensor], Any]:
        """The loss of the batch's one task, by the task's index; and the penalties of each column's texts."""
        name, added = inputs[NAME], list[dict[str, Tensor]]()
        # A loss embeds one column after another, and a penalty is of the last pass.
        watching = self.model.register_forward_hook(lambda own, *_: added.append(penalties(own)))
        try:
            with on_task(model, name):
                loss = SentenceTransformerTrainer.compute_loss(self, model, dict(inputs))
        finally:
            watching.remove()
        return {self.task_names.index(name): loss}, added

    def penalties_of(self, model: nn.Module, outputs: Any) -> dict[str, Tensor]:
        """The adapter's, as means over the columns."""
        return {key: torch.stack([own[key] for own in outputs]).mean() for key in outputs[0]} if outputs else {}

    def counts(self, inputs: Mapping[str, Any]) -> Tensor:
        """The rows of the batch's task: (T,)."""
        counts_T = torch.zeros(len(self.task_names), dtype=torch.long)
        counts_T[self.task_names.index(inputs[NAME])] = next(
            len(each) for each in inputs.values() if torch.is_tensor(each)
        )
        return counts_T

    def _save(self, *args: Any, **keywords: Any) -> None:
        # The library's card embeds a few texts, and any task does for these.
        with on_task(self.model, self.task_names[0]):
            super()._save(*args, **keywords)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> Tensor | tuple[Tensor, Any]:
        """The task's loss; in training with its weight and the adapter's penalties."""
        if model.training:
            return super().compute_loss(model, inputs, return_outputs)
        [loss] = self.task_losses(model, inputs)[0].values()
        return (loss, {}) if return_outputs else loss


class _ByTask(SentenceEvaluator):
    """Evaluators, each of which sees the model on its task; metrics are named `<task>_<metric>`."""

    def __init__(self, evaluators: Mapping[str, SentenceEvaluator]) -> None:
        super().__init__()
        self.evaluators = dict(evaluators)

    def __call__(self, model: SentenceTransformer, *args: Any, **keywords: Any) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, evaluator in self.evaluators.items():
            with on_task(model, name):
                metrics = evaluator(model, *args, **keywords)
            found |= {f"{name}_{metric}": value for metric, value in metrics.items()}
        return found


def _refuse_cached(losses: Sequence[Any]) -> None:
    """Losses that call the model in the backward pass, which knows no task."""
    for loss in losses:
        for module in loss.modules() if isinstance(loss, nn.Module) else ():
            if isinstance(module, CACHED):
                name = type(module).__name__
                raise ValueError(
                    f"{name} embeds its texts again in the backward pass, where no task is named: take "
                    f"{name.removeprefix('Cached')}, or a method without cores by task and no surgery."
                )


def _check_window(args: SentenceTransformerTrainingArguments, num_tasks: int) -> None:
    steps, sampler = args.gradient_accumulation_steps, args.multi_dataset_batch_sampler
    if steps % num_tasks or sampler != MultiDatasetBatchSamplers.ROUND_ROBIN:
        raise ValueError(
            f"Surgery compares the tasks' gradients of one step, and a batch has one task: set "
            f"gradient_accumulation_steps={num_tasks} and multi_dataset_batch_sampler='round_robin' (now {steps} and "
            f"{sampler})."
        )
