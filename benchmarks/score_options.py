"""Scoring options behind one reading of their prompt, beside a row for each option with all its logits.

    python benchmarks/score_options.py [--quick] [--json]

Time: 16 questions with four options of three tokens behind 100 tokens of prompt, and a Llama of six blocks of 384. Both
ways take turns; the bound is 2.5 times faster. Memory: 64 questions with 77 options behind 25 tokens, and a Llama of 30
blocks with SmolLM2's vocabulary; the bound is 2 GiB beside the model.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from statistics import median
from typing import Any

import psutil
import torch
import transformers
from torch import Tensor, nn

from lorachord.training.option_scores import Question, score_options

VOCABULARY = 49_152
FASTER, MOST_MEMORY = 2.5, 2.0


def nothing(places: Sequence[int], prompt_mask_BL: Tensor) -> AbstractContextManager[None]:
    return nullcontext()


def llama(blocks: int, width: int, vocabulary: int) -> nn.Module:
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 64}
    config = transformers.LlamaConfig(vocab_size=vocabulary, num_hidden_layers=blocks, **sizes)
    return transformers.LlamaForCausalLM(config).eval()


def questions(count: int, prompt: int, options: int, vocabulary: int) -> list[Question]:
    generator = torch.Generator().manual_seed(0)

    def tokens(length: int) -> list[int]:
        found: list[int] = torch.randint(vocabulary, (length,), generator=generator).tolist()
        return found

    return [Question(tokens(prompt), [tokens(3) for _ in range(options)]) for _ in range(count)]


def a_row_each(model: nn.Module, asked: Sequence[Question]) -> list[Tensor]:
    """As it is done without further thought."""
    rows = torch.tensor([question.prompt + option for question in asked for option in question.options])
    start, count = len(asked[0].prompt), len(asked[0].options)
    log_BLV = model(input_ids=rows).logits[:, start - 1 : -1].float().log_softmax(2)
    return list(log_BLV.gather(2, rows[:, start:, None]).sum((1, 2)).view(-1, count))


def seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def speed(turns: int) -> dict[str, float]:
    model, asked = llama(6, 384, 8_000), questions(16, 100, 4, 8_000)
    new = score_options(model, asked, nothing, padding=0)
    old = a_row_each(model, asked)
    error = max(float((one - other).abs().max()) for one, other in zip(new, old, strict=True))
    times = [
        (seconds(lambda: a_row_each(model, asked)), seconds(lambda: score_options(model, asked, nothing, padding=0)))
        for _ in range(turns)
    ]
    return {"faster": median(old / new for old, new in times), "largest_difference": error}


def memory(count: int) -> dict[str, float]:
    """The highest memory of the process while scoring, less that before, in GiB."""
    model, asked = llama(30, 576, VOCABULARY), questions(count, 25, 77, VOCABULARY)
    process, done = psutil.Process(), threading.Event()
    before = process.memory_info().rss
    highest = before

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.01):
            highest = max(highest, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    took = seconds(lambda: score_options(model, asked, nothing, padding=0))
    done.set()
    watcher.join()
    return {"gib": (highest - before) / 2**30, "seconds": took, "questions": count}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute: fewer turns and questions")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    with torch.no_grad():
        found: dict[str, Any] = {
            "time": speed(3 if chosen.quick else 11),
            "memory": memory(8 if chosen.quick else 64),
        }
    if chosen.json:
        print(json.dumps(found, indent=2))
        return
    fast, space = found["time"], found["memory"]
    print(f"{fast['faster']:.2f}x faster (bound {FASTER}), largest difference {fast['largest_difference']:.1e}")
    print(f"{space['gib']:.2f} GiB for {space['questions']:.0f} questions of 77 options (bound {MOST_MEMORY})")


if __name__ == "__main__":
    main()
