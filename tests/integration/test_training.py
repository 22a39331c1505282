"""Training on several tasks, on tiny models with a word-level tokenizer made here."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import PreTrainedTokenizerFast, TrainingArguments

import lorachord as lc
from lorachord.data.mixture import TaskMixture
from lorachord.data.sources import from_rows
from lorachord.data.task import Source, Task
from lorachord.surgery.surgeon import Surgeon
from lorachord.training.decoder import IGNORED, DecoderBatches
from lorachord.training.encoder import EncoderBatches
from lorachord.training.scoring import predict, save_records, score_records
from lorachord.training.trainer import MultiTaskTrainer
from tests import tiny_data
from tests.tiny_data import rows
from tests.tiny_models import perturb, tiny

MEMORY = Source(path="memory")
TASKS = (
    Task(name="colour", kind="classification", source=MEMORY, text=("sentence1",), labels=("no", "yes"), group="idx"),
    Task(name="size", kind="pair", source=MEMORY, text=("sentence1", "sentence2"), labels=("no", "yes"), group="idx"),
    Task(name="number", kind="regression", source=MEMORY, text=("sentence1",), group="idx"),
    Task(name="choice", kind="multiple_choice", source=MEMORY, text=("sentence1",), group="idx"),
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_data.tokenizer()


def data(tasks: tuple[Task, ...] = TASKS, size: int = 80) -> list[Any]:
    return [from_rows(task, {"train": rows(task, size, 1), "dev": rows(task, 40, 2)}) for task in tasks]


def examples(tasks: tuple[Task, ...] = TASKS) -> list[dict[str, Any]]:
    return [{**part.train[row], "task": index} for index, part in enumerate(data(tasks)) for row in range(3)]


def encoder(method: str = "mtl_lora", tasks: tuple[Task, ...] = TASKS) -> Any:
    base = lc.add_heads(tiny("bert"), {task.name: task.num_outputs for task in tasks})
    return lc.attach(base, method, tasks=[task.name for task in tasks], r=4)


def trainer(model: Any, kind: Any, parts: list[Any], out: Path, **settings: Any) -> MultiTaskTrainer:
    defaults = dict(max_steps=8, learning_rate=1e-2, logging_steps=4, save_strategy="no", report_to=[], seed=0)
    args = TrainingArguments(output_dir=str(out), disable_tqdm=True, use_cpu=True, **{**defaults, **settings})
    mixture = TaskMixture([len(part.train) for part in parts], batch_size=16, num_batches=8)
    train, val = [part.train for part in parts], [part.val for part in parts]
    return MultiTaskTrainer(
        model,
        args,
        tasks=kind.tasks,
        tokenizer=kind.tokenizer,
        max_length=kind.max_length,
        train_data=train,
        eval_data=val,
        mixture=mixture,
    )


def test_an_encoders_losses_are_means_over_each_tasks_examples(tokenizer: Any) -> None:
    kind, model = EncoderBatches(tokenizer, TASKS), encoder().eval()
    perturb(model, 0.3)
    mixed = examples()
    batch = kind.collate(mixed)
    assert batch["num_rows"] == [1] * 9 + [len(example["choices"]) for example in mixed[9:]]
    with lc.on_task(model, batch["tasks"]):
        losses = kind.losses(model(**kind.inputs(batch)).logits, batch)

    for index, task in enumerate(TASKS):
        terms = []
        for example in mixed[3 * index : 3 * index + 3]:
            alone = kind.collate([example])
            with lc.on_task(model, index):
                output = model(**{name: alone[name] for name in ("input_ids", "attention_mask")}).logits
            label = torch.tensor(example["label"])
            if task.kind == "regression":
                terms.append((output[0, 0] - label) ** 2)
            else:
                scores = output[:, 0] if task.kind == "multiple_choice" else output[0, :2]
                terms.append(-torch.log_softmax(scores, 0)[label])
        torch.testing.assert_close(losses[index], torch.stack(terms).mean(), rtol=1e-3, atol=1e-4)


def test_the_unit_of_its_numbers_does_not_weigh_a_regression(tokenizer: Any, tmp_path: Path) -> None:
    tasks, found = TASKS[2:3], []
    for unit in (1.0, 100.0):
        parts = [
            from_rows(tasks[0], {"train": [{**row, "label": unit * row["label"]} for row in rows(tasks[0], 80, 1)]})
        ]
        kind = EncoderBatches(tokenizer, tasks)
        made = trainer(encoder(tasks=tasks), kind, parts, tmp_path)
        batch = kind.collate([{**parts[0].train[row], "task": 0} for row in range(8)])
        outputs = unit * torch.arange(8.0).view(8, 1)
        found.append(kind.losses(outputs, batch, made.variances))
    torch.testing.assert_close(found[1][0], found[0][0])
    # And a constant guess of the mean has a loss of about 1.
    variance = kind.losses(torch.full((8, 1), unit * 0.5), batch, made.variances)
    assert 0.8 < float(variance[0]) < 1.2


def test_a_decoders_losses_are_means_over_each_tasks_answer_tokens(tokenizer: Any) -> None:
    tasks = TASKS[:2]
    kind, model = DecoderBatches(tokenizer, tasks), tiny("llama")
    mixed = examples(tasks)
    batch = kind.collate(mixed)
    found = kind.losses(model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits, batch)
    for index in range(2):
        terms = []
        for example in mixed[3 * index : 3 * index + 3]:
            ids, labels = kind.rows.row(tasks[index].render(example), tasks[index].target(example), end=True)
            assert [token for token in labels if token != IGNORED] == ids[-2:]
            assert tokenizer.decode(ids[-2:]) == f"{tasks[index].target(example)} [EOS]"
            logits = model(input_ids=torch.tensor([ids])).logits[0]
            terms += [F.cross_entropy(logits[at - 1], torch.tensor(labels[at])) for at in (-2, -1)]
        torch.testing.assert_close(found[index], torch.stack(terms).mean(), rtol=1e-4, atol=1e-5)


def test_training_learns_every_task_and_logs_each(tokenizer: Any, tmp_path: Path) -> None:
    parts, model = data(), encoder()
    made = trainer(model, EncoderBatches(tokenizer, TASKS), parts, tmp_path, max_steps=60)
    made.mixture = TaskMixture([len(part.train) for part in parts], batch_size=16, num_batches=60)
    made.train()
    logged = [entry for entry in made.state.log_history if "loss" in entry]
    assert all(f"loss_{task.name}" in entry for entry in logged for task in TASKS)
    metrics = made.evaluate([part.dev for part in parts])
    scores = [metrics[f"eval_{task.name}"] for task in TASKS]
    assert metrics["eval_mean"] == pytest.approx(sum(scores) / 4)
    assert metrics["eval_worst"] == min(scores)
    # The options ask more of two blocks of 16 features than 60 steps can give.
    assert min(scores[:3]) > 0.8


def test_records_are_scored_again_without_the_model(tokenizer: Any, tmp_path: Path) -> None:
    parts, model = data(), encoder()
    made = trainer(model, EncoderBatches(tokenizer, TASKS), parts, tmp_path)
    records = made.predict_tasks()
    save_records(tmp_path / "predictions", {**records, "suite/nested": records["size"]})
    assert (tmp_path / "predictions" / "suite" / "nested.jsonl").is_file()
    for task, part in zip(TASKS, parts, strict=True):
        lines = (tmp_path / "predictions" / f"{task.name}.jsonl").read_text().splitlines()
        again = [json.loads(line) for line in lines]
        assert len(again) == len(part.val)
        assert score_records(task, again) == score_records(task, records[task.name])


@pytest.mark.parametrize("method", ["lora", "mtl_lora", "peft_lora"])
def test_accumulated_batches_step_like_the_mean_of_their_gradients(tokenizer: Any, tmp_path: Path, method: str) -> None:
    parts, model = data(), encoder(method)
    perturb(model, 0.1)
    settings = dict(max_steps=1, gradient_accumulation_steps=2, optim="sgd", learning_rate=0.5, max_grad_norm=0)
    made = trainer(model, EncoderBatches(tokenizer, TASKS), parts, tmp_path, lr_scheduler_type="constant", **settings)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    for _, batch in zip(range(2), made.get_train_dataloader(), strict=False):
        (made.compute_loss(model.train(), batch) / 2).backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    made.train()
    for name, parameter in model.named_parameters():
        if name in wanted:
            torch.testing.assert_close(parameter, before[name] - 0.5 * wanted[name], rtol=1e-4, atol=1e-5)


def trained(tokenizer: Any, out: Path, rule: str | None, **settings: Any) -> tuple[MultiTaskTrainer, dict[str, Any]]:
    torch.manual_seed(0)
    parts, model = data(), encoder("lora")
    perturb(model, 0.1)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    made = trainer(model, EncoderBatches(tokenizer, TASKS), parts, out, optim="sgd", max_grad_norm=0, **settings)
    if rule is not None:
        made.surgeon = Surgeon(model, rule)
    made.train()
    return made, {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_surgery_by_the_plain_sum_trains_as_no_surgery_does(tokenizer: Any, tmp_path: Path, accumulation: int) -> None:
    settings = dict(max_steps=3, gradient_accumulation_steps=accumulation, learning_rate=0.1)
    _, expected = trained(tokenizer, tmp_path / "plain", None, **settings)
    made, found = trained(tokenizer, tmp_path / "sum", "sum", **settings)
    assert made.surgeon is not None
    assert made.surgeon.num_operations == 3
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)


def test_surgery_changes_the_factors_alone_and_says_how_far(tokenizer: Any, tmp_path: Path) -> None:
    settings = dict(max_steps=1, learning_rate=0.5, logging_steps=1, lr_scheduler_type="constant")
    made, before = trained(tokenizer, tmp_path / "plain", None, **settings)
    made, after = trained(tokenizer, tmp_path / "ortho", "ortho_lora", **settings)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(".down" in name or ".up" in name for name in changed)
    logged = made.state.log_history[0]
    assert 0 < logged["surgery_conflicts"] <= 1
    assert logged["surgery_moved"] > 0
    # Scoring goes on as before, with the leaves in place.
    assert made.evaluate().keys() >= {"eval_mean", "eval_worst"}


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tokenizer: Any, tmp_path: Path) -> None:
    kind, ends = EncoderBatches(tokenizer, TASKS), []
    for interrupted in (False, True):
        torch.manual_seed(0)
        out = tmp_path / str(interrupted)
        made = trainer(encoder(), kind, data(), out, save_strategy="steps", save_steps=4)
        made.train()
        if interrupted:
            torch.manual_seed(0)
            made = trainer(encoder(), kind, data(), out)
            made.train(resume_from_checkpoint=str(out / "checkpoint-4"))
        ends.append({name: p.detach() for name, p in made.model.named_parameters() if p.requires_grad})
    for name, parameter in ends[0].items():
        torch.testing.assert_close(ends[1][name], parameter, rtol=1e-4, atol=1e-6)


def test_a_decoder_trains_and_is_scored_on_its_options(tokenizer: Any, tmp_path: Path) -> None:
    tasks = TASKS[:2]
    parts = data(tasks)
    model = lc.attach(
        tiny("llama"), "lora", r=8, target_modules="all-linear", modules_to_save=["lm_head", "embed_tokens"]
    )
    made = trainer(model, DecoderBatches(tokenizer, tasks), parts, tmp_path, max_steps=60)
    made.mixture = TaskMixture([len(part.train) for part in parts], batch_size=16, num_batches=60)
    made.train()
    assert made.evaluate([part.dev for part in parts])["eval_worst"] > 0.9
    record = predict(model, made.kind, parts[0].dev, 0)[0]
    assert len(record["scores"]) == 2
    assert record["prediction"] == int(record["scores"][1] > record["scores"][0])
    assert "prediction_normalised" in record


def test_free_answers_are_written_greedily_whatever_the_padding(tokenizer: Any) -> None:
    task = Task(name="echo", kind="generation", source=MEMORY, text=("sentence1",), group="idx")
    model, kind = lc.attach(tiny("llama"), "lora"), DecoderBatches(tokenizer, (task,))
    rows = {"first": ["red", "blue big small"], "second": ["", ""], "label": ["up", "down"], "idx": [0, 1]}
    both = predict(model, kind, Dataset.from_dict(rows), 0, max_new_tokens=5)
    for index in range(2):
        one = Dataset.from_dict({key: value[index : index + 1] for key, value in rows.items()})
        assert both[index]["text"] == predict(model, kind, one, 0, max_new_tokens=5)[0]["text"]


@pytest.mark.parametrize("name", ["train_data", "task_weights"])
def test_numbers_that_do_not_fit_are_refused(tokenizer: Any, tmp_path: Path, name: str) -> None:
    parts = data()
    given = {"train_data": [part.train for part in parts], "eval_data": [part.val for part in parts]}
    given["mixture"] = TaskMixture([3, 3, 3, 3], batch_size=4)
    given[name] = [1.0, 2.0]
    args = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    with pytest.raises(ValueError, match=f"{name} has 2 entries for 4 tasks"):
        MultiTaskTrainer(encoder(), args, tasks=TASKS, tokenizer=tokenizer, **given)
