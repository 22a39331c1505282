"""Rows of tokens for a decoder: a prompt, and the answer that follows it.

A row holds at most `max_length` tokens. A prompt that is too long loses its beginning, but keeps the tokens that the
tokenizer puts before every text.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lorachord.data.task import Task

logger = logging.getLogger(__name__)

IGNORED = -100
"""The label of a token that no loss is taken of."""
LEAST_PROMPT = 8
"""One of so many tokens of a row, and two at least, are the prompt's, however long the answer is."""
Row = tuple[list[int], list[int]]
"""Token ids, and their labels."""


@dataclass(frozen=True)
class DecoderRows:
    """
    Args:
        tokenizer: of the model.
        max_length: tokens of a row at most.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    _said: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    @property
    def end(self) -> int:
        """The token that ends an answer.

        Raises:
            ValueError: the tokenizer has none.
        """
        if self.tokenizer.eos_token_id is None:
            raise ValueError("The tokenizer has no token for the end of a text: set tokenizer.eos_token.")
        return int(self.tokenizer.eos_token_id)

    @property
    def padding(self) -> int:
        """The token that fills rows."""
        return 0 if self.tokenizer.pad_token_id is None else int(self.tokenizer.pad_token_id)

    @cached_property
    def around(self) -> tuple[list[int], list[int]]:
        """The tokens that the tokenizer puts before and after a prompt, without the end of a text: an answer follows.

        Raises:
            ValueError: `max_length` leaves no room beside them.
        """
        plain, full = self._ids("a"), list(self.tokenizer("a")["input_ids"])
        starts = [at for at in range(len(full) - len(plain) + 1) if plain and full[at : at + len(plain)] == plain]
        if not starts:
            return [], []
        before, after = full[: starts[0]], full[starts[0] + len(plain) :]
        after = [token for token in after if token != self.tokenizer.eos_token_id]
        needed = len(before) + len(after) + 4
        if self.max_length < needed:
            raise ValueError(
                f"max_length is {self.max_length}, and a row needs {needed} tokens at least: {needed - 4} that the "
                "tokenizer adds, two of the prompt, one of the answer and its end."
            )
        return before, after

    def prompt(self, prompt: str, room: int | None = None) -> list[int]:
        """The tokens of a prompt, at most `room` (default: `max_length`), and one at least."""
        before, after = self.around
        left = max(1, (self.max_length if room is None else room) - len(before) - len(after))
        ids = [*before, *self._ids(prompt)[-left:], *after]
        if ids:
            return ids
        # The first token of an answer is predicted from the one before it.
        start = self.tokenizer.bos_token_id
        return [self.end if start is None else int(start)]

    def row(self, prompt: str, answer: str, *, end: bool, beside: Sequence[str] = ()) -> Row:
        """Token ids of prompt and answer, and the labels of the answer alone.

        Args:
            end: whether the end-of-text token follows.
            beside: other answers to this prompt, which is cut for the longest, so that all follow the same prompt.
        """
        before, after = self.around
        least = min(len(self._ids(prompt)) or 1, max(2, self.max_length // LEAST_PROMPT))
        most = self.max_length - len(before) - len(after) - least
        ids = self.answer(answer, end=end)
        longest = max(len(ids), *(len(self.answer(other, end=end)) for other in beside), 0)
        if longest > most:
            self._say_cut(longest)
        if len(ids) > most:
            ids = [*ids[: most - end], *([self.end] * end)]
        prompt_ids = self.prompt(prompt, self.max_length - min(longest, most))
        return prompt_ids + ids, [IGNORED] * len(prompt_ids) + ids

    def whole(self, prompt: str, answers: Sequence[str]) -> int:
        """The tokens of a prompt with the longest of some answers and its end, nothing cut."""
        before, after = self.around
        longest = max(len(self.answer(answer, end=True)) for answer in answers)
        return len(before) + len(self._ids(prompt)) + len(after) + longest

    def answer(self, answer: str, *, end: bool) -> list[int]:
        """The tokens of an answer, whole; `end` adds the end-of-text token."""
        return [*self._ids(" " + answer), *([self.end] * end)]

    def need_ends(self, answers: Sequence[str]) -> bool:
        """Whether one answer begins another: then it is likelier than the other unless its end counts too."""
        ids = [tuple(self.answer(answer, end=False)) for answer in answers]
        return any(one == other[: len(one)] for i, one in enumerate(ids) for k, other in enumerate(ids) if i != k)

    def check(self, tasks: Sequence[Task]) -> None:
        """Whether the answers that name classes have room beside a prompt.

        Raises:
            ValueError: one has not; cut, it could be another's beginning.
        """
        room = self.max_length - len(self.prompt("", 1)) - 1
        for task in tasks:
            for answer in task.answers:
                length = len(self.answer(answer, end=True))
                if length > room:
                    raise ValueError(
                        f"Task {task.name!r}: the answer {answer!r} has {length} tokens with its end, which leaves no "
                        f"room for a prompt in max_length {self.max_length}: raise it, or write shorter answers=(...)."
                    )

    def pad(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Tensors of rows (B, L), padded on the right."""
        length = max(len(ids) for ids, _ in rows)

        def padded(lists: list[list[int]], filler: int) -> Tensor:
            return torch.tensor([ids + [filler] * (length - len(ids)) for ids in lists])

        return {
            "input_ids": padded([ids for ids, _ in rows], self.padding),
            "attention_mask": padded([[1] * len(ids) for ids, _ in rows], 0),
            "labels": padded([labels for _, labels in rows], IGNORED),
        }

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _say_cut(self, length: int) -> None:
        if "cut" not in self._said:
            self._said.add("cut")
            logger.warning(
                "an answer has %d tokens, too many for max_length %d beside its prompt: it is cut, as are others like "
                "it; raise max_length to keep them whole",
                length,
                self.max_length,
            )
