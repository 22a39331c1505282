"""Rows of tokens of a chat: the turns as the tokenizer's chat template writes them, and the assistant's answer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2 import TemplateError

from lorachord.data.chats import Turns
from lorachord.training.decoder_rows import DecoderRows

PROBE = "lorachordanswer"
"""An answer that no template changes, by which an answer's place in its turn is found."""


@dataclass(frozen=True)
class ChatRows(DecoderRows):
    """Its prompts are texts of `written`, which hold their special tokens; an answer ends as the template ends a turn.

    Args:
        tokenizer: of the model, with a chat template.
        max_length: tokens of a row at most.
    """

    def written(self, turns: Turns, *, answer: str | None = None) -> str:
        """Turns as text, up to where the assistant begins to write; with an answer to the end of its turn.

        Raises:
            ValueError: the tokenizer has no chat template, or its template refuses the turns.
        """
        tokenizer: Any = self.tokenizer
        if not tokenizer.chat_template:
            raise ValueError(
                "The tokenizer has no chat template, which a task of the kind chat needs: write one, or the file that "
                "holds it, as model.chat_template; in Python set tokenizer.chat_template."
            )
        more = [] if answer is None else [{"role": "assistant", "content": answer}]
        try:
            text: str = tokenizer.apply_chat_template(
                [*turns, *more], tokenize=False, add_generation_prompt=answer is None
            )
        except TemplateError as error:
            roles = ", ".join(turn["role"] for turn in turns)
            raise ValueError(f"The chat template does not take the turns {roles}: {error}.") from None
        return text

    @cached_property
    def _turn(self) -> tuple[str, str]:
        """What the template writes before and after an answer.

        Raises:
            ValueError: it begins a turn otherwise than it asks for one.
        """
        asked: Turns = [{"role": "user", "content": "a"}]
        prompt, whole = self.written(asked), self.written(asked, answer=PROBE)
        before, found, after = whole.removeprefix(prompt).partition(PROBE)
        if not whole.startswith(prompt) or not found:
            raise ValueError(
                f"The chat template asks for an answer by {prompt!r} and writes it as {whole!r}, which does not go on "
                "from there: take a template whose add_generation_prompt opens the assistant's turn."
            )
        return before, after

    @cached_property
    def around(self) -> tuple[list[int], list[int]]:
        """None: the template writes them."""
        return [], []

    @property
    def end(self) -> int:
        """The first token behind an answer; where the template writes none, the token that ends a text."""
        ids = self._ids(self._turn[1].strip())
        return ids[0] if ids else super().end

    def answer(self, answer: str, *, end: bool) -> list[int]:
        """The tokens of an answer, whole; `end` adds the token that ends its turn."""
        return [*self._ids(self._turn[0] + answer), *([self.end] * end)]
