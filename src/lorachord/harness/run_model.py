"""The harness's model type `lorachord`: a decoder with an adapter, which answers one of its tasks.

Shapes: B rows, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from lorachord.families.by_prompt import PromptLevel
from lorachord.messages import suggest
from lorachord.runs.served import Served, autocast_of, find_served
from lorachord.training.model_kind import answering

Request = tuple[tuple[str, str], list[int], list[int]]
"""Context and continuation; the tokens of the context; those of the continuation."""


@final
@register_model("lorachord")
class LorachordLM(HFLM):
    """
    Args:
        run: a finished run, an exported LoRA or a folder of them, or a merged model.
        task: that answers. Default: the only one that there is.
        batch_size: rows at a time. Default 1.
        max_batch_size: as HFLM's; for `auto`.
        max_length: tokens of a row at most. Default: what the model takes.
        device: default: the accelerator, if there is one.

    Raises:
        ValueError: no such run or task, or a model that writes no text.
    """

    def __init__(
        self,
        run: str,
        task: str | None = None,
        *,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        device: str | None = None,
    ) -> None:
        self._start(find_served(run), task, batch_size, max_batch_size, max_length, device)

    @classmethod
    def of(cls, served: Sequence[Served], task: str | None, batch_size: int | str = 1) -> LorachordLM:
        """From what `find_served` has found, whose weights are read once for all tasks."""
        made = cls.__new__(cls)
        made._start(served, task, batch_size, None, None, None)
        return made

    def _start(
        self,
        served: Sequence[Served],
        task: str | None,
        batch_size: int | str,
        max_batch_size: int | None,
        max_length: int | None,
        device: str | None,
    ) -> None:
        self.served, self.task = one_of(served, task)
        model, kind = self.served.loaded
        if kind.name != "decoder":
            raise ValueError("The harness asks causal language models, and this one is an encoder: take a decoder.")
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
        self.prompted = any(isinstance(module, PromptLevel) for module in model.modules())
        HFLM.__init__(
            self,
            pretrained=model,
            tokenizer=kind.tokenizer,
            backend="causal",
            batch_size=batch_size,
            max_batch_size=max_batch_size,
            max_length=max_length,
        )

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        with answering(self.model, self.task), autocast_of(self.served):
            logits: Tensor = super()._model_call(inps, attn_mask, labels)
        return logits

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **settings: Any) -> Tensor:
        with answering(self.model, self.task), autocast_of(self.served):
            written: Tensor = super()._model_generate(context, max_length, stop, **settings)
        return written

    @torch.no_grad()
    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """As HFLM's; an adapter that chooses by the prompt is told where each prompt ends."""
        if not self.prompted:
            found: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
            return found
        size = self.batch_size if isinstance(self.batch_size, int) else 1
        order = sorted(range(len(requests)), key=lambda place: -len(requests[place][1] + requests[place][2]))
        answers: dict[int, tuple[float, bool]] = {}
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            answers |= zip(chosen, self._scored([requests[place] for place in chosen]), strict=True)
        return [answers[place] for place in range(len(requests))]

    def _scored(self, requests: list[Request]) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation, and whether it is the most probable one."""
        rows = [(before + after)[-(self.max_length + 1) :][:-1] for _, before, after in requests]
        length = max(map(len, rows))
        ids_BL = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        sizes_B1 = torch.tensor([[len(row)] for row in rows])
        # The last token of a context predicts the first of its continuation.
        prompts_B1 = sizes_B1 + 1 - torch.tensor([[len(after)] for _, _, after in requests])
        column_L = torch.arange(length)
        with (
            answering(self.model, self.task, prompt_mask=(column_L < prompts_B1).to(self.device)),
            autocast_of(self.served),
        ):
            mask_BL = (column_L < sizes_B1).long().to(self.device)
            logits_BLV = self.model(input_ids=ids_BL.to(self.device), attention_mask=mask_BL).logits
        found = []
        for (_, _, after), row, logits_LV in zip(requests, rows, logits_BLV, strict=True):
            own_AV = logits_LV[len(row) - len(after) : len(row)].float().log_softmax(-1)
            target_A = torch.tensor(after, device=own_AV.device)
            likelihood = float(own_AV.gather(1, target_A[:, None]).sum())
            found.append((likelihood, bool((own_AV.argmax(1) == target_A).all())))
        return found


def one_of(served: Sequence[Served], task: str | None) -> tuple[Served, int]:
    """The model that answers a task, and the task's index among its own.

    Raises:
        ValueError: no such task, or several to choose from.
    """
    places = {own.name: (each, index) for each in served for index, own in enumerate(each.tasks)}
    if task is None:
        if len(places) > 1:
            raise ValueError(f"There are several tasks, {', '.join(places)}: say which of them answers (task=NAME).")
        task = next(iter(places))
    if task not in places:
        raise ValueError(f"No task is called {task!r}. {suggest(task, places)}")
    return places[task]
