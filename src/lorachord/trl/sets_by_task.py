"""What TRL's trainers over several tasks share: data sets by task, checked before a model is read."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset  # type: ignore[import-untyped]
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import PreTrainedModel, TrainingArguments

from lorachord.balance.base import Balance
from lorachord.balance.make import check_balance, make_balance
from lorachord.core.registry import get_method
from lorachord.data.mixture import TaskMixture
from lorachord.families.by_prompt import PromptLevel
from lorachord.surgery.surgeon import Surgeon, check_surgery
from lorachord.training.bad_numbers import MAX_BAD_STEPS
from lorachord.training.sharded import check_ranks
from lorachord.trl.given_sets import Sets, by_task, is_chat
from lorachord.trl.losses_by_task import LossesByTask
from lorachord.tuner.peft_config import LorachordConfig
from lorachord.tuner.saved_calibration import require_none

REFUSED = ("data_collator", "compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics", "formatting_func")


class SetsByTask(LossesByTask):
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
        self.eval_data = trainer.eval_dataset or {}
        trainer.data_collator = self.collator()
        if surgery is not None:
            check_ranks(trainer.accelerator, surgery=True)
            self.surgeon = Surgeon(trainer.model, num_tasks=len(names), **surgery)
        self.follow_steps()

    @abstractmethod
    def collator(self) -> Any:
        """TRL's collator with the tasks of a batch, when the trainer has made its own."""

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
