"""Training and scoring of methods that choose once for each prompt."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

import lorachord as lc
from lorachord.data.mixture import TaskMixture
from lorachord.data.task import Source, Task
from lorachord.runs.train import train
from lorachord.runs.use import evaluate
from lorachord.training.decoder import DecoderBatches
from lorachord.training.encoder import EncoderBatches
from lorachord.training.prompt_embeddings import with_embeddings
from lorachord.training.trainer import MultiTaskTrainer
from lorachord.tuner.prompt_clusters import embed_prompts
from tests import tiny_data
from tests.tiny_data import recipe, rows
from tests.tiny_models import perturb, tiny

OPTIONS = {"mixlora": {"r": 2, "num_experts": 4}, "mor1e": {"r1": 2, "r2": 3}}
WRITTEN = ("colour", "choice", "echo")
CHOICE = Task(name="choice", kind="multiple_choice", source=Source(path="memory"), text=("sentence1",))


def test_another_model_may_embed_the_prompts(
    tiny_bert: Path, tiny_llama: Path, task_files: Path, tmp_path: Path
) -> None:
    method = {"name": "mor1e", **OPTIONS["mor1e"], "encoder": str(tiny_bert)}
    made = recipe(tiny_llama, *WRITTEN, method=method, model={"kind": "decoder"})
    run = train(made, tmp_path / "run", data_dir=task_files)
    assert evaluate(run.path, "dev", data_dir=task_files, again=True)["tasks"] == run.metrics["dev"]["tasks"]


def test_an_encoder_that_is_not_there_is_refused_before_anything_is_made(
    tiny_llama: Path, task_files: Path, tmp_path: Path
) -> None:
    method = {"name": "mor1e", "encoder": str(tmp_path / "nowhere")}
    made = recipe(tiny_llama, *WRITTEN, method=method, model={"kind": "decoder"})
    with pytest.raises(ValueError, match=r"method: .*nowhere"):
        train(made, tmp_path / "run", data_dir=task_files)
    assert not (tmp_path / "run").exists()


def trained(model: Any, task: Task, out: Path, **settings: Any) -> MultiTaskTrainer:
    data = [rows(task, 40, 1)]
    args = TrainingArguments(
        str(out), max_steps=3, report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True, **settings
    )
    mixture = TaskMixture([len(data[0])], batch_size=8, num_batches=3)
    return MultiTaskTrainer(
        model,
        args,
        tasks=[task],
        tokenizer=tiny_data.tokenizer(),
        train_data=data,
        eval_data=data,
        mixture=mixture,
    )


def examples(task: Task) -> list[dict[str, Any]]:
    return [
        {"first": row["sentence1"], "second": "", "choices": row["choices"], "label": row["label"], "idx": row["idx"]}
        for row in rows(task, 40, 1)
    ]


def test_a_training_step_pays_nothing_for_embeddings(tmp_path: Path) -> None:
    model = lc.attach(tiny("llama"), "mor1e", tasks=["choice"], **OPTIONS["mor1e"])
    trainer = trained(model, CHOICE, tmp_path)
    passes: list[int] = []
    model.get_base_model().model.register_forward_hook(lambda *_: passes.append(1))
    trainer.train()
    assert len(passes) == 3


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_a_rows_embedding_is_that_of_its_own_prompt(name: str) -> None:
    tokenizer = tiny_data.tokenizer()
    base, made = (tiny("bert"), EncoderBatches) if name == "encoder" else (tiny("llama"), DecoderBatches)
    model = lc.attach(base, "mor1e", tasks=["choice"], **OPTIONS["mor1e"])
    perturb(model)
    kind, some = made(tokenizer, (CHOICE,)), examples(CHOICE)[:5]
    (embedded,) = with_embeddings(model, kind, [some], batch_size=2)
    batch = kind.collate([{**embedded[row], "task": 0} for row in range(5)])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels") if name in batch}
    assert len(batch["embedding"]) == len(batch["input_ids"])
    # The cached ones are kept in half precision.
    torch.testing.assert_close(batch["embedding"], embed_prompts(model, inputs), rtol=0, atol=1e-3)


def test_a_decoders_training_loss_is_that_of_a_pass_with_labels(tmp_path: Path) -> None:
    model = lc.attach(tiny("llama"), "mixlora", tasks=["choice"], **OPTIONS["mixlora"])
    perturb(model, 0.5)
    trainer = trained(model, CHOICE, tmp_path)
    batch = trainer.kind.collate([{**example, "task": 0} for example in examples(CHOICE)[:6]])
    losses, outputs = trainer.task_losses(model, batch)
    labelled = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")})
    torch.testing.assert_close(outputs.logits, labelled.logits)
    torch.testing.assert_close(losses[0], labelled.loss)


@pytest.mark.parametrize(
    ("method", "kept"), [("mor1e", {"gate", "share"}), ("multilora", {"scaling"}), ("lora", set()), ("mixlora", set())]
)
def test_weight_decay_leaves_alone_what_a_method_says(method: str, kept: set[str], tmp_path: Path) -> None:
    model = lc.attach(tiny("llama"), method, tasks=["choice"], **OPTIONS.get(method, {}))
    optimizer = trained(model, CHOICE, tmp_path, weight_decay=0.1).create_optimizer()
    names = {id(p): name.rpartition(".")[2] for name, p in model.named_parameters()}
    decays: dict[float, set[str]] = {0.0: set(), 0.1: set()}
    for group in optimizer.param_groups:
        decays[group["weight_decay"]] |= {names[id(p)] for p in group["params"]}
    assert decays[0.0] == kept
    assert {"down", "up"} <= decays[0.1]
