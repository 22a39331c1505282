"""Supervised fine-tuning on several instruction sets.

Shapes: B rows, L tokens, T tasks.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from datasets import Dataset, concatenate_datasets  # type: ignore[import-untyped]
from torch import Tensor, nn
from trl.chat_template_utils import has_generation_markers
from trl.data_utils import pack_dataset
from trl.trainer.sft_trainer import SFTTrainer

from lorachord.training.decoder_rows import IGNORED
from lorachord.trl.collators import TASKS, TOKEN_TASKS, InstructionCollator
from lorachord.trl.given_sets import check_instructions, is_chat
from lorachord.trl.losses_by_task import task_means
from lorachord.trl.sets_by_task import SetsByTask
from lorachord.tuner import on_task, penalties
from lorachord.tuner.prompt_masks import prompt_before


@final
class MultiTaskSFTTrainer(SetsByTask, SFTTrainer):  # type: ignore[misc]  # noqa: D101
    __doc__ = f"""TRL's SFTTrainer over several instruction sets.

    Each set has columns of its own: `messages`; `prompt` and `completion`, of which the completion is learned; or a
    text. With `packing=True` a packed row holds samples of several tasks, and each token keeps its own.
{str(SetsByTask.__doc__).partition(chr(10))[2]}"""

    def check_rows(self, name: str, rows: Dataset, args: Any) -> None:
        """Whether rows have columns of instructions, and the arguments go with losses by task.

        Raises:
            ValueError: they have not, or do not.
        """
        check_instructions(name, rows, args.dataset_text_field)
        if args.label_smoothing_factor:
            raise ValueError("label_smoothing_factor is not taken beside losses by task: leave it out.")
        if (args.dataset_kwargs or {}).get("skip_prepare_dataset"):
            raise ValueError("skip_prepare_dataset is not taken: rows with input_ids and labels stay as they are.")
        if args.packing and self.mixture_options:
            raise ValueError("A packed row holds several tasks and is drawn whole: leave out mixture or packing.")
        template = self.chat_templates.get(name)
        if args.assistant_only_loss and template is not None and not has_generation_markers(template):
            raise ValueError(f"assistant_only_loss needs {{% generation %}} in the chat template of {name!r}.")

    def sample(self, args: Any) -> Dataset:
        """The first data set; of those with conversations, where the arguments speak of them."""
        sets = list(self.sets.values())
        return next((rows for rows in sets if is_chat(rows)), sets[0]) if args.assistant_only_loss else sets[0]

    def prepared(self, name: str, rows: Dataset, given: Sequence[Any], *, trains: bool) -> Dataset:
        """The columns `input_ids` and `labels`; also `seq_lengths`, of packed rows to evaluate."""
        tokenizer, args, packing, *rest = given
        args, template = copy.copy(args), self.chat_template
        args.assistant_only_loss = args.assistant_only_loss and is_chat(rows)
        if trains and packing:
            # Packed when all tasks are there. The other strategies cut long rows without a loss.
            packing = False
            args.max_length = args.max_length if args.packing_strategy == "bfd" else None
        pairs = "prompt" in rows.column_names and "completion" in rows.column_names
        self.completion_only_loss = pairs if args.completion_only_loss is None else args.completion_only_loss
        self.chat_template = self.chat_templates.get(name, template)
        try:
            found = SFTTrainer._prepare_dataset(self, rows, tokenizer, args, packing, *rest)
        finally:
            self.chat_template = template
        return found.select_columns(
            [key for key in ("input_ids", "labels", "seq_lengths") if key in found.column_names]
        )

    def preparing(self, name: str) -> tuple[Any, ...]:
        """What `prepared` is given for rows that are evaluated later."""
        args: Any = self.args
        return self.processing_class, args, args.packing if args.eval_packing is None else args.eval_packing, None, name

    def merged(self, sets: Mapping[str, Dataset], args: Any) -> tuple[Dataset, ...]:
        """One data set a task; with packing one of all tasks, whose rows name the task of each token."""
        if not args.packing:
            return tuple(sets.values())
        named = [
            rows.add_column(TOKEN_TASKS, [[index] * len(ids) for ids in rows["input_ids"]])
            for index, rows in enumerate(sets.values())
        ]
        # Shuffled, so that rows of different tasks meet.
        together = concatenate_datasets(named).shuffle(seed=args.seed)
        return (pack_dataset(together, args.max_length, args.packing_strategy),)

    def collator(self) -> InstructionCollator:
        """TRL's own, with tasks."""
        return InstructionCollator(**vars(self.data_collator))

    def task_losses(self, model: nn.Module, inputs: Mapping[str, Any]) -> tuple[dict[int, Tensor], Any]:
        """The mean loss over the counted tokens of each task in a batch, by the task's index, and the outputs."""
        given = {key: value for key, value in inputs.items() if key != TASKS}
        labels_BL, tasks = inputs["labels"], inputs[TASKS]
        if self.aux_loss_enabled:
            given["output_router_logits"] = True
        with on_task(model, tasks, prompt_mask=prompt_before(labels_BL) if tasks.dim() == 1 else None):
            outputs = model(**given, use_cache=False, fused_lm_head=True)
        losses_BL = -outputs.log_probs
        args: Any = self.args
        if args.loss_type == "dft":
            losses_BL = losses_BL * outputs.log_probs.exp().detach()
        self._see(outputs, inputs)
        return task_means(losses_BL, outputs.label_mask, _of_targets(tasks, labels_BL)), outputs

    def counts(self, inputs: Mapping[str, Any]) -> Tensor:
        """The counted tokens of each task: (T,)."""
        labels_BL = inputs["labels"]
        tasks_N = _of_targets(inputs[TASKS], labels_BL)[labels_BL[:, 1:] != IGNORED]
        return torch.bincount(tasks_N, minlength=len(self.task_names))

    def penalties_of(self, model: nn.Module, outputs: Any) -> dict[str, Tensor]:
        """The adapter's, and the loss of a mixture of experts in the base."""
        added = penalties(model)
        return {**added, "aux": self.router_aux_loss_coef * outputs.aux_loss} if self.aux_loss_enabled else added

    @torch.no_grad()
    def _see(self, outputs: Any, inputs: Mapping[str, Any]) -> None:
        """TRL's own metrics of a batch, over all ranks."""
        assert self.model is not None
        mode = "train" if self.model.training else "eval"
        tokens = inputs["attention_mask"].sum() if "attention_mask" in inputs else inputs["input_ids"].numel()
        sums = [outputs.label_mask.sum(), outputs.entropy.sum(), outputs.is_top1.sum(), torch.as_tensor(tokens)]
        sums_4 = torch.stack([part.to(outputs.entropy) for part in sums])
        counted, entropy, correct, tokens = self.accelerator.reduce(sums_4, reduction="sum").tolist()
        self._metrics[mode]["entropy"].append(entropy / max(counted, 1))
        self._metrics[mode]["mean_token_accuracy"].append(correct / max(counted, 1))
        if mode == "train":
            self._total_train_tokens += int(tokens)
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]


def _of_targets(tasks: Tensor, labels_BL: Tensor) -> Tensor:
    """The task of each predicted token: (B, L - 1)."""
    return tasks[:, 1:] if tasks.dim() == 2 else tasks[:, None].expand_as(labels_BL[:, 1:])
