"""The words of a text in any script, for ROUGE."""

from __future__ import annotations

import re
import unicodedata

from rouge_score.tokenizers import DefaultTokenizer, Tokenizer  # type: ignore[import-untyped]

UNPARTED = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3040, 0x30FF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
"""Code points of scripts that put no space between words: Thai, Lao, Burmese, Khmer, Kana and Chinese characters."""


class RougeWords(Tokenizer):
    """rouge-score's own words of ASCII texts, stemmed; of others, runs of letters, marks and digits in lower case."""

    def __init__(self) -> None:
        self.english = DefaultTokenizer(use_stemmer=True)

    def tokenize(self, text: str) -> list[str]:
        """The words of a text in their order."""
        if text.isascii():
            words: list[str] = self.english.tokenize(text)
            return words
        found: list[str] = []
        for word in "".join(map(_spaced, unicodedata.normalize("NFKC", text).lower())).split():
            found += self.english.tokenize(word) if re.fullmatch("[a-z0-9]+", word) else [word]
        return found


def _spaced(letter: str) -> str:
    if any(first <= ord(letter) <= last for first, last in UNPARTED):
        # A mark belongs to the letter before it.
        return letter if unicodedata.category(letter)[0] == "M" else f" {letter}"
    return letter if unicodedata.category(letter)[0] in "LMN" else " "
