"""TRL's trainers over several tasks do as MultiTaskTrainer does, on packed rows as on plain ones."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

import lorachord as lc
from lorachord.surgery.surgeon import Surgeon
from lorachord.trl import MultiTaskDPOTrainer, MultiTaskSFTTrainer
from tests.integration.test_ranks import assert_ranks_change_nothing
from tests.tiny_data import CHAT_TEMPLATE, chat, tokenizer
from tests.tiny_models import perturb, tiny

datasets.disable_progress_bars()

TASKS = ("colour", "size")
ROWS = {
    "colour": [
        {"prompt": f"{one} {two} ", "completion": f"yes {two}"} for one in ("red", "blue") for two in ("up", "no")
    ],
    "size": [
        {"prompt": f"big {word} or {word} ", "completion": "small"} for word in ("up", "down", "one", "two", "red")
    ],
}
SETTINGS: dict[str, Any] = dict(
    learning_rate=0.05,
    lr_scheduler_type="constant",
    optim="sgd",
    max_steps=3,
    per_device_train_batch_size=4,
    report_to=[],
    save_strategy="no",
    disable_tqdm=True,
    use_cpu=True,
    logging_steps=1,
    gradient_checkpointing=False,
)
OPTIONS: dict[str, dict[str, Any]] = {
    "mtl_lora": {"r": 2},
    "lora": {"r": 2},
    "moelora": {"r": 4, "balance": 2.0, "z": 0.5},
}


def attached(method: str = "mtl_lora", **changes: Any) -> PeftModel:
    model = lc.attach(tiny("llama"), method, tasks=list(TASKS), **{**OPTIONS.get(method, {}), **changes})
    perturb(model, 0.1)
    return model


def sft(model: Any, folder: Path, rows: Any = None, **changes: Any) -> MultiTaskSFTTrainer:
    own = {key: changes.pop(key) for key in list(changes) if key in MIXIN}
    settings = SFTConfig(str(folder), **{**SETTINGS, "bf16": False, "max_length": 32, **changes})
    given = {"processing_class": tokenizer(), **own}
    return MultiTaskSFTTrainer(model, settings, train_dataset=rows or ROWS, **given)


MIXIN = (
    "eval_dataset",
    "processing_class",
    "peft_config",
    "chat_templates",
    "mixture",
    "task_weights",
    "surgery",
    "balance",
)


def trained(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def assert_alike(one: dict[str, Tensor], two: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(
            two[name], value, rtol=tolerance, atol=tolerance, msg=lambda found, name=name: name + found
        )


def plain(model: PeftModel, folder: Path, surgery: str | None, **changes: Any) -> lc.MultiTaskTrainer:
    tasks = [lc.Task(name, kind="generation", text="prompt", label="completion", prompt="{first}") for name in TASKS]
    return lc.MultiTaskTrainer(
        model,
        TrainingArguments(str(folder), **{**SETTINGS, **changes}),
        tasks=tasks,
        tokenizer=tokenizer(),
        train_data=ROWS,
        eval_data=ROWS,
        surgeon=None if surgery is None else Surgeon(model, surgery),
    )


@pytest.mark.parametrize(
    ("method", "surgery", "accumulation"),
    [("mtl_lora", "ortho_lora", 1), ("mtl_lora", "ortho_lora", 2), ("moelora", None, 1)],
)
def test_steps_equal_the_trainers_of_transformers(
    method: str, surgery: str | None, accumulation: int, tmp_path: Path
) -> None:
    changes = {"gradient_accumulation_steps": accumulation}
    ours = sft(attached(method), tmp_path, surgery=surgery, **changes)
    other = plain(attached(method), tmp_path, surgery, **changes)
    before = trained(ours.model)
    batches = [next(iter(trainer.get_train_dataloader())) for trainer in (ours, other)]
    assert_alike(*batches)
    for trainer in (ours, other):
        trainer.train()
    assert_alike(trained(other.model), trained(ours.model))
    assert any(not torch.equal(value, before[name]) for name, value in trained(ours.model).items())
    logged = ours.state.log_history[0]
    assert {"loss_colour", "loss_size", "mean_token_accuracy"} <= logged.keys()
    assert ("penalty_balance" in logged) == (method == "moelora")
    assert ("surgery_conflicts" in logged) == (surgery is not None)


@pytest.mark.parametrize("method", ["mtl_lora", "lora", "hydralora"])
def test_packed_rows_equal_plain_ones(method: str, tmp_path: Path) -> None:
    one, two = (
        sft(attached(method), tmp_path, surgery="ortho_lora", packing=packing, max_length=24)
        for packing in (False, True)
    )
    rows = [{**row, "task": task} for task, own in enumerate(one.train_data) for row in own]
    found = []
    for trainer, batch in ((one, one.data_collator(rows)), (two, two.data_collator(list(two.train_data[0])))):
        losses, outputs = trainer.task_losses(trainer.model, batch)
        torch.stack(list(losses.values())).sum().backward()
        operation = trainer.surgeon.operate(0)
        target_BL, mask_BL, tasks = batch["labels"][:, 1:], outputs.label_mask, batch["tasks"]
        task_BL = tasks[:, 1:] if trainer is two else tasks[:, None].expand_as(target_BL)
        tokens = zip(*(values[mask_BL].tolist() for values in (task_BL, target_BL, outputs.log_probs)), strict=True)
        gradients = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
        found.append((losses, torch.tensor(sorted(tokens)), operation.gramians_NTT, gradients))
    assert batch["input_ids"].shape == batch["tasks"].shape == (1, sum(len(row["input_ids"]) for row in rows))
    for value, other in zip(*found, strict=True):
        torch.testing.assert_close(other, value, rtol=1e-4, atol=1e-6)


def test_wrapped_rows_keep_the_task_of_each_token(tmp_path: Path) -> None:
    packed = sft(
        attached(), tmp_path, packing=True, packing_strategy="wrapped", max_length=7, per_device_train_batch_size=3
    )
    batch = next(iter(packed.get_train_dataloader()))
    assert batch["tasks"].shape == batch["input_ids"].shape == (3, 7)
    words, rows = tokenizer(), packed.train_data[0]
    flat = [(word, task) for row in rows for word, task in zip(row["input_ids"], row["token_tasks"], strict=True)]
    for name, task in (("yes", 0), ("small", 1)):
        found = [own for word, own in flat if word == words.convert_tokens_to_ids(name)]
        assert set(found) == {task}
    assert packed.train().global_step == 3


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_nothing(reentrant: bool, tmp_path: Path) -> None:
    kept = sft(attached(), tmp_path, surgery="ortho_lora")
    kept.train()
    again = sft(
        attached(), tmp_path, surgery="ortho_lora", gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": reentrant},
    )  # fmt: skip
    again.train()
    assert_alike(trained(kept.model), trained(again.model))


@pytest.mark.slow
@pytest.mark.parametrize("what", ["plain", "packed", "preferences"])
def test_two_ranks_equal_one_process(what: str, tmp_path: Path) -> None:
    assert_ranks_change_nothing(tmp_path, "train_trl_on_ranks.py", what)


def test_a_resumed_run_is_the_unbroken_one(tmp_path: Path) -> None:
    settings = {
        "save_strategy": "steps",
        "save_steps": 2,
        "max_steps": 4,
        "optim": "adamw_torch",
        "learning_rate": 1e-2,
    }
    whole = sft(attached(), tmp_path / "whole", **settings)
    whole.train()
    resumed = sft(attached(), tmp_path / "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert resumed.state.global_step == 4
    assert_alike(trained(whole.model), trained(resumed.model), 0)


def test_columns_and_templates_may_differ(tmp_path: Path) -> None:
    rows = {
        "pairs": [{"prompt": "red ", "completion": "yes"}] * 3,
        "chats": [{"messages": chat("big", "small one")}] * 3,
        "stories": [{"text": "up down"}] * 3,
        "answers": [{"prompt": chat("big", "no")[:1], "completion": chat("big", "no")[1:]}] * 3,
    }
    own = "{% for message in messages %}- {{ message['content'] }} {% endfor %}"
    words = tokenizer()
    words.chat_template = CHAT_TEMPLATE
    config = lc.LorachordConfig.build("lora", r=2)
    trainer = sft(
        tiny("llama"), tmp_path, rows, processing_class=words, peft_config=config, chat_templates={"chats": own},
        eval_dataset={name: rows[name] for name in ("chats", "pairs")},
    )  # fmt: skip
    assert config.tasks == list(rows)
    texts = {
        name: words.decode([label for label in data[0]["labels"] if label != -100])
        for name, data in zip(rows, trainer.train_data, strict=True)
    }
    assert texts == {
        "pairs": "yes [EOS]", "chats": "- big - small one", "stories": "up down [EOS]", "answers": "no [EOS]"
    }  # fmt: skip
    metrics = trainer.evaluate()
    assert [name for name in metrics if name.endswith("_loss")] == [
        "eval_pairs_loss", "eval_chats_loss", "eval_loss", "eval_worst_loss"
    ]  # fmt: skip
    assert metrics["eval_worst_loss"] == max(metrics["eval_chats_loss"], metrics["eval_pairs_loss"])


def test_assistants_turns_alone_are_learned(tmp_path: Path) -> None:
    words = tokenizer()
    words.chat_template = CHAT_TEMPLATE
    turns = [*chat("big", "one"), *chat("red", "two")]
    rows = {"colour": ROWS["colour"], "size": [{"messages": turns}] * 2}
    trainer = sft(attached(), tmp_path, rows, processing_class=words, assistant_only_loss=True)
    labels = [label for label in trainer.train_data[1][0]["labels"] if label != -100]
    assert words.decode(labels) == "one [EOS] two [EOS]"


def test_one_data_set_may_name_the_task_of_each_row(tmp_path: Path) -> None:
    rows = Dataset.from_list([{**row, "task": name} for name, own in ROWS.items() for row in own])
    one, two = sft(attached(), tmp_path), sft(attached(), tmp_path, rows)
    assert [list(own) for own in two.train_data] == [list(own) for own in one.train_data]


def test_evaluation_is_the_mean_over_all_tokens(tmp_path: Path) -> None:
    rows = {"colour": [{"prompt": "red ", "completion": word} for word in ("yes", "yes up down one two no")]}
    losses = [
        sft(attached(), tmp_path, eval_dataset=rows, per_device_eval_batch_size=size, **packing).evaluate()["eval_loss"]
        for size, packing in ((1, {}), (8, {}), (1, {"packing": True}))
    ]
    assert losses[1:] == pytest.approx(losses[:1] * 2, rel=1e-6)


def test_the_mixture_draws_rows_by_task(tmp_path: Path) -> None:
    rows = {"colour": ROWS["colour"] * 9, "size": ROWS["size"][:2]}
    trainer = sft(attached(), tmp_path, rows, mixture={"sampling": "uniform", "every_task": True})
    assert all(set(batch["tasks"].tolist()) == {0, 1} for batch in trainer.get_train_dataloader())


@pytest.mark.parametrize("trainer", [Trainer, SFTTrainer])
def test_stock_trainers_are_told_of_a_penalty_once(trainer: type[Trainer], tmp_path: Path) -> None:
    model = attached("moelora")
    rows = Dataset.from_list([{"input_ids": [3, 4, 5], "labels": [3, 4, 5]}] * 8)
    config = TrainingArguments if trainer is Trainer else SFTConfig
    args = config(str(tmp_path), **SETTINGS)
    made = trainer(model, args, train_dataset=rows, processing_class=tokenizer())
    with pytest.warns(UserWarning, match=r"leaves it out.*MultiTaskTrainer.*MultiTaskSFTTrainer") as warned:
        made.train()
    assert len([one for one in warned if "leaves it out" in str(one.message)]) == 1


PREFERENCES = {
    "colour": [
        {"prompt": "red up ", "chosen": "yes one", "rejected": "no"},
        {"prompt": "blue ", "chosen": "no", "rejected": "up"},
    ],
    "size": [{"prompt": "big ", "chosen": "small", "rejected": "big two"}] * 2,
}


def preferences(model: Any, folder: Path, **given: Any) -> MultiTaskDPOTrainer:
    args = DPOConfig(str(folder), **{**SETTINGS, "bf16": False})
    return MultiTaskDPOTrainer(model, args, train_dataset=PREFERENCES, processing_class=tokenizer(), **given)


def test_preferences_have_trls_own_loss_for_each_task(tmp_path: Path) -> None:
    ours = preferences(attached(), tmp_path, eval_dataset=PREFERENCES)
    perturb(ours.model, 0.2, seed=5)
    metrics = ours.evaluate()
    batch = next(iter(ours.get_train_dataloader()))
    assert batch["tasks"].tolist() == [0, 0, 1, 1]
    losses, _ = ours.task_losses(ours.model, batch)
    for index, name in enumerate(TASKS):
        stock = DPOTrainer(
            attached(), args=ours.args, train_dataset=Dataset.from_list(PREFERENCES[name]), processing_class=tokenizer()
        )
        perturb(stock.model, 0.2, seed=5)
        own = stock.data_collator(list(stock.train_dataset))
        with lc.on_task(stock.model, name):
            expected = stock.compute_loss(stock.model, own).detach()
        torch.testing.assert_close(losses[index], expected, rtol=1e-6, atol=1e-6)
        assert metrics[f"eval_{name}_loss"] == pytest.approx(float(expected), rel=1e-5)
        assert f"eval_{name}_rewards/accuracies" in metrics


def test_preferences_train_with_surgery_and_a_balance(tmp_path: Path) -> None:
    config = lc.LorachordConfig.build("mtl_lora", tasks=list(TASKS), r=2)
    ours = preferences(
        tiny("llama"), tmp_path, peft_config=config, surgery={"rule": "ortho_lora"}, balance="uncertainty"
    )
    before = trained(ours.model)
    ours.train()
    assert {"loss_colour", "weight_size", "surgery_moved"} <= ours.state.log_history[0].keys()
    assert any(not torch.equal(value, before[name]) for name, value in trained(ours.model).items())


NO_ANSWER = [{"messages": chat("big", "small")}, {"messages": chat("big", "small")[:1]}]
LORA = lc.LorachordConfig.build("lora", r=2)
PLAIN = {"assistant_only_loss": True, "chat_templates": {"size": "{{ messages }}"}}
NAMED = {"peft_config": lc.LorachordConfig.build("lora", tasks=list(TASKS))}
BAD: list[tuple[str, Any, dict[str, Any]]] = [
    (r"'size'.*row 1.*no turn of the assistant", {**ROWS, "size": NO_ANSWER}, {}),
    (r"columns 'messages'.*has prmpt, completion.*'prompt'", {**ROWS, "size": [{"prmpt": "", "completion": ""}]}, {}),
    (r"'size', row 0.*both be texts", {**ROWS, "size": [{"prompt": chat("big", "no"), "completion": "b"}]}, {}),
    (r"'size', row 0.*must hold text; it holds None", {**ROWS, "size": [{"text": None}]}, {}),
    (r"'size', row 0.*a message has a 'role'", {**ROWS, "size": [{"messages": [{"text": "a"}]}]}, {}),
    (r"no rows of size", {"colour": ROWS["colour"]}, NAMED),
    (r"rows of 'sizes'.*'size'", {**ROWS, "sizes": ROWS["size"]}, NAMED),
    (r"no rows of 'size': leave", {**ROWS, "size": Dataset.from_dict({"text": []})}, {}),
    (r"a Dataset for each task", Dataset.from_list(ROWS["size"]), {}),
    (r"is a list", ROWS["size"], {}),
    (r"There is no adapter", ROWS, {"peft_config": None}),
    (r"chat template", {**ROWS, "size": NO_ANSWER[:1]}, {}),
    (r"task_weights names 'sise'", ROWS, {"task_weights": {"sise": 2.0}}),
    (r"no rule 'ortho'", ROWS, {"surgery": "ortho"}),
    (r"no balance 'dwb'", ROWS, {"balance": "dwb"}),
    (r"leave out mixture or packing", ROWS, {"packing": True, "mixture": {"sampling": "uniform"}}),
    (r"mixlora chooses once for each", ROWS, {"packing": True, "peft_config": lc.LorachordConfig.build("mixlora")}),
    (r"thanora.*calibration", ROWS, {"peft_config": lc.LorachordConfig.build("thanora", tasks=[*TASKS])}),
    (r"% generation %", {**ROWS, "size": NO_ANSWER[:1]}, PLAIN),
]  # fmt: skip


@pytest.mark.parametrize(("message", "rows", "given"), BAD, ids=[message for message, *_ in BAD])
def test_bad_input_is_told_before_a_model_is_read(
    message: str, rows: Any, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("a model is read")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", read)
    with pytest.raises(ValueError, match=message):
        sft("nobody/nothing", tmp_path, rows, **{"peft_config": LORA, **given})


def test_what_replaces_losses_by_task_is_refused(tmp_path: Path) -> None:
    args = SFTConfig(str(tmp_path), **SETTINGS)
    with pytest.raises(ValueError, match="leave out compute_metrics"):
        MultiTaskSFTTrainer(attached(), args, train_dataset=ROWS, compute_metrics=len)
    with pytest.raises(ValueError, match="nothing to evaluate"):
        sft(attached(), tmp_path).evaluate()
    with pytest.raises(ValueError, match=r"colour.*max_length 2"):
        sft(attached(), tmp_path, max_length=2)
