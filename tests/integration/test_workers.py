"""Workers load the same batches, and a run that is resumed with them is the unbroken run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import get_worker_info
from transformers import TrainerCallback, TrainingArguments

import lorachord as lc
from lorachord.data.task import Source, Task
from lorachord.training.encoder import EncoderBatches
from lorachord.training.trainer import MultiTaskTrainer
from tests.tiny_data import rows, tokenizer
from tests.tiny_models import tiny

TASKS = [
    Task(name=name, kind="classification", source=Source(path="memory"), text=("sentence1",), labels=("no", "yes"))
    for name in ("colour", "size")
]
pytestmark = pytest.mark.filterwarnings("ignore:This process", "ignore:.*fork", "ignore:This DataLoader")


class Stop(TrainerCallback):
    """As a kill after a step."""

    def __init__(self, at: int | None) -> None:
        self.at = at

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.at:
            raise KeyboardInterrupt


def trained(out: Path, *, stop: int | None = None, resume: bool = False, **settings: Any) -> dict[str, torch.Tensor]:
    """A run's adapter; seven steps of two batches over two epochs and a half, with dropout."""
    torch.manual_seed(0)
    base = lc.add_heads(tiny("bert"), dict.fromkeys(["colour", "size"], 2))
    model = lc.attach(base, "mosld", tasks=["colour", "size"], r=2, num_experts=2, dropout=0.1)
    defaults = dict(max_steps=7, learning_rate=1e-2, gradient_accumulation_steps=2, per_device_train_batch_size=8)
    saving = dict(save_strategy="steps", save_steps=2, logging_steps=1, report_to=[], disable_tqdm=True, use_cpu=True)
    args = TrainingArguments(output_dir=str(out), **defaults, **saving, **settings)
    data = {task.name: rows(task, 24, seed) for seed, task in enumerate(TASKS)}
    keywords: dict[str, Any] = dict(tasks=TASKS, train_data=data, eval_data=data, tokenizer=tokenizer())
    trainer = MultiTaskTrainer(model, args, callbacks=[Stop(stop)], **keywords)
    trainer.train(resume_from_checkpoint=resume or None)
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("persistent", [False, True])
def test_a_run_with_workers_is_the_run_without_and_resumes_bit_for_bit(persistent: bool, tmp_path: Path) -> None:
    workers = dict(dataloader_num_workers=2, dataloader_persistent_workers=persistent, dataloader_prefetch_factor=2)
    alone = trained(tmp_path / "alone")
    whole = trained(tmp_path / "whole", **workers)
    assert equal(whole, alone)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "broken", stop=5, **workers)
    assert equal(trained(tmp_path / "broken", resume=True, **workers), whole)


def test_the_workers_asked_for_collate_the_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = tmp_path / "seen"
    seen.mkdir()
    collate = EncoderBatches.collate

    def recording(self: EncoderBatches, examples: Any) -> Any:
        found = get_worker_info()
        (seen / ("none" if found is None else str(found.id))).touch()
        return collate(self, examples)

    monkeypatch.setattr(EncoderBatches, "collate", recording)
    trained(tmp_path / "run", dataloader_num_workers=2)
    assert sorted(path.name for path in seen.iterdir()) == ["0", "1"]
