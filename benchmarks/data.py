"""The share of a training step that is spent outside of the model, by part.

    python benchmarks/data.py [--quick] [--json]

`MultiTaskTrainer` trains `mtl_lora` of rank 8 on four tasks in batches of 16 x 64 tokens: an encoder of MiniLM-L6's
architecture, and a Llama of six blocks of 384 features. A WordPiece tokenizer of 8,000 words reads texts of 40 to 90
words, which are cut at 64 tokens. Each part is timed where it is called; the first steps do not count.

- `outside`: a step less the model's forward and backward pass and the optimizer; at most 3 % of it.
- `rows`: reading, tokenizing and padding the batch, a part of that.
- `again`: the same for a batch whose rows have been read before, as in a second epoch.
"""

from __future__ import annotations

import logging
import random
import tempfile
from collections.abc import Callable, Iterator
from statistics import median
from time import perf_counter
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, TrainerCallback, TrainingArguments

import lorachord as lc
from harness import Options, Result, parse_options, report

TASKS, ROWS, LENGTH = "abcd", 16, 64
NUM_WORDS = 8_000
LAYERS = {"num_hidden_layers": 6, "num_attention_heads": 6}
WORDS = [f"w{number}" for number in range(NUM_WORDS)]


def tokenizer() -> PreTrainedTokenizerBase:
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[EOS]", *WORDS, "no", "yes"])}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]")


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    return [
        {"text": " ".join(draw.choices(WORDS, k=draw.randint(40, 90))), "label": ("no", "yes")[number % 2]}
        for number in range(count)
    ]


def encoder() -> transformers.PreTrainedModel:
    config = transformers.BertConfig(
        vocab_size=NUM_WORDS + 8, hidden_size=384, intermediate_size=1536, **LAYERS, pad_token_id=0
    )
    return lc.add_heads(transformers.BertForSequenceClassification(config), dict.fromkeys(TASKS, 2))


def decoder() -> transformers.PreTrainedModel:
    sizes = dict(hidden_size=384, intermediate_size=1024, **LAYERS)
    config = transformers.LlamaConfig(
        vocab_size=NUM_WORDS + 8, pad_token_id=0, bos_token_id=None, eos_token_id=2, **sizes
    )
    return transformers.LlamaForCausalLM(config)


class Clock(TrainerCallback):
    """Seconds of each step, and of the parts that are timed inside of it."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = [{}]
        self.began = perf_counter()

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def around(*args: Any, **keywords: Any) -> Any:
            start = perf_counter()
            found = call(*args, **keywords)
            self.steps[-1][part] = self.steps[-1].get(part, 0.0) + perf_counter() - start
            return found

        return around

    def on_step_end(self, *args: Any, **keywords: Any) -> None:
        self.steps[-1]["whole"] = perf_counter() - self.began
        self.steps.append({})
        self.began = perf_counter()

    def share(self, part: str) -> float:
        """The median of a part's share of a step, in percent."""
        whole = self.steps[3:-1]
        return 100 * median(step.get(part, 0.0) / step["whole"] for step in whole)

    @property
    def outside(self) -> float:
        inside = ("forward", "backward", "optimizer")
        return 100 * median(1 - sum(step[part] for part in inside) / step["whole"] for step in self.steps[3:-1])


def benchmark(options: Options) -> Iterator[Result]:
    num_steps = 8 if options.quick else 40
    for name, make in (("encoder", encoder), ("decoder", decoder)):
        torch.manual_seed(0)
        model = lc.attach(make(), "mtl_lora", tasks=list(TASKS))
        tasks = [lc.Task(task, kind="classification", text="text", label="label") for task in TASKS]
        clock = Clock()
        settings: dict[str, Any] = dict(report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True)
        trainer = lc.MultiTaskTrainer(
            model,
            TrainingArguments(
                tempfile.mkdtemp(), max_steps=num_steps, per_device_train_batch_size=ROWS, logging_steps=10, **settings
            ),
            tokenizer=tokenizer(),
            tasks=tasks,
            train_data={task: rows(ROWS * num_steps // 8, seed) for seed, task in enumerate(TASKS)},
            max_length=LENGTH,
            callbacks=[clock],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        base: Any = model
        base.forward = clock.timed("forward", base.forward)
        trainer.accelerator.backward = clock.timed("backward", trainer.accelerator.backward)
        collate = trainer.kind.collate
        object.__setattr__(trainer.kind, "collate", clock.timed("rows", collate))
        trainer.create_optimizer()
        trainer.optimizer.step = clock.timed("optimizer", trainer.optimizer.step)
        trainer.train()
        yield Result(f"{name}: outside", clock.outside, unit="%", bound=3.0)
        yield Result(f"{name}: rows", clock.share("rows"), unit="%")
        step = median(step["whole"] for step in clock.steps[3:-1])
        batch = next(iter(trainer.mixture))
        examples = [trainer.train_dataset[place] for place in batch]
        seconds = []
        for _ in range(20):
            start = perf_counter()
            collate(examples)
            seconds.append(perf_counter() - start)
        yield Result(f"{name}: again", 100 * median(seconds) / step, unit="%")
        yield Result(f"{name}: step", step, unit="s")


def main() -> int:
    options = parse_options(__doc__)
    logging.disable(logging.WARNING)
    torch.set_num_threads(2)
    return report(benchmark(options), options)


if __name__ == "__main__":
    raise SystemExit(main())
