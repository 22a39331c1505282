"""Direct preference optimization on several sets of preferences.

Shapes: B pairs, whose 2 B rows are the chosen answers and then the rejected ones; L tokens; T tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, final

import torch
from accelerate import Accelerator
from datasets import Dataset  # type: ignore[import-untyped]
from torch import Tensor, nn
from trl.trainer.dpo_trainer import DPOTrainer

from lorachord.training.decoder_rows import IGNORED
from lorachord.trl.collators import TASKS, PreferenceCollator
from lorachord.trl.given_sets import check_preferences
from lorachord.trl.sets_by_task import SetsByTask
from lorachord.tuner import on_task
from lorachord.tuner.prompt_masks import prompt_before


@final
class MultiTaskDPOTrainer(SetsByTask, DPOTrainer):  # type: ignore[misc]  # noqa: D101
    __doc__ = f"""TRL's DPOTrainer over several sets of preferences.

    Each set has the columns `chosen` and `rejected`, and `prompt` where these do not begin with it. A batch is one pass
    of the model, and the loss of each task is TRL's own over the task's pairs. TRL's metrics are of this rank's pairs.
{str(SetsByTask.__doc__).partition(chr(10))[2]}"""

    def check_rows(self, name: str, rows: Dataset, args: Any) -> None:
        """Whether rows have the columns of preferences, and the arguments go with losses by task.

        Raises:
            ValueError: they have not, or do not.
        """
        check_preferences(name, rows)
        if args.precompute_ref_log_probs:
            raise ValueError("precompute_ref_log_probs is not taken: the reference is the model without its adapter.")
        if self.chat_templates:
            raise ValueError("chat_templates are for instructions: preferences have the tokenizer's template.")

    def prepared(self, name: str, rows: Dataset, given: Sequence[Any], *, trains: bool) -> Dataset:
        """The columns `prompt_ids`, `chosen_ids` and `rejected_ids`."""
        found = DPOTrainer._prepare_dataset(self, rows, *given)
        return found.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"])

    def preparing(self, name: str) -> tuple[Any, ...]:
        """What `prepared` is given for rows that are evaluated later."""
        return self.processing_class, self.args, name

    def collator(self) -> PreferenceCollator:
        """TRL's own, with tasks."""
        return PreferenceCollator(**vars(self.data_collator))

    def task_losses(self, model: nn.Module, inputs: Mapping[str, Any]) -> tuple[dict[int, Tensor], Any]:
        """The loss of each task's pairs, by the task's index, and the outputs of the whole batch."""
        tasks_B, batch = inputs[TASKS], {key: value for key, value in inputs.items() if key != TASKS}
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, IGNORED)
        given = {key: batch[key] for key in ("input_ids", "attention_mask")}
        if self.aux_loss_enabled:
            given["output_router_logits"] = True
        with on_task(model, tasks_B.repeat(2), prompt_mask=prompt_before(labels)):
            outputs = model(**given, labels=labels, use_cache=False, fused_lm_head=True)
        losses = {}
        assert self.model is not None
        for index in tasks_B.unique().tolist():
            pairs = (tasks_B == index).nonzero().flatten()
            rows = torch.cat([pairs, pairs + len(tasks_B)])
            own = {key: value[rows] for key, value in batch.items()}
            # The reference may be an adapter too, which has tasks.
            with on_task(self.model, index, prompt_mask=prompt_before(labels[rows])), _alone(self.accelerator):
                losses[index] = self._compute_loss(_Taken(outputs, rows), own, False)
        return losses, outputs

    def counts(self, inputs: Mapping[str, Any]) -> Tensor:
        """The pairs of each task: (T,)."""
        return torch.bincount(inputs[TASKS], minlength=len(self.task_names))


class _Taken:
    """In the place of a model: some rows of the outputs of a pass that was made."""

    def __init__(self, outputs: Any, rows: Tensor) -> None:
        values = {spec.name: getattr(outputs, spec.name) for spec in fields(outputs)}
        whole = len(outputs.log_probs)
        self.outputs = type(outputs)(
            **{
                name: value[rows] if isinstance(value, Tensor) and value.dim() and len(value) == whole else value
                for name, value in values.items()
            }
        )

    def __call__(self, **_: Any) -> Any:
        return self.outputs


@contextmanager
def _alone(accelerator: Accelerator) -> Iterator[None]:
    """Within this block nothing is gathered from other ranks, whose batches may lack the task."""
    names = ("gather", "gather_for_metrics")
    for name in names:
        vars(accelerator)[name] = _itself
    try:
        yield
    finally:
        for name in names:
            del vars(accelerator)[name]


def _itself(value: Any) -> Any:
    return value
