"""A script that serves an exported LoRA as anyone would, without this package: transformers and PEFT alone.

    python -P peft_only.py BASE LORA TEXTS

TEXTS holds a text a line; it prints the predicted class of each, a line each. It stands here so that the demo can show
that an export needs nothing of LoRAchord; run by its path, it imports nothing of it either.
"""

import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def main(base: str, lora: str, texts: str) -> None:
    """Load, predict, print."""
    lines = Path(texts).read_text(encoding="utf-8").splitlines()
    tokenizer = AutoTokenizer.from_pretrained(base)
    # The head comes with the LoRA, whatever the base had.
    how = {"num_labels": 2, "ignore_mismatched_sizes": True}
    model = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(base, **how), lora).eval()
    with torch.no_grad():
        logits = model(**tokenizer(lines, padding=True, return_tensors="pt")).logits
    if "lorachord" in sys.modules:
        raise SystemExit("lorachord was imported")
    print("\n".join(str(int(row.argmax())) for row in logits))


if __name__ == "__main__":
    main(*sys.argv[1:])
