"""Balanced losses in the Trainer and in recipes, and surgery's arrays in run folders."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import TrainingArguments

import lorachord as lc
from lorachord.balance.make import make_balance
from lorachord.data.mixture import TaskMixture
from lorachord.data.sources import from_rows
from lorachord.runs.checks import check
from lorachord.runs.recipe import recipe_from
from lorachord.runs.single_recipes import single_recipes
from lorachord.runs.train import train
from lorachord.surgery.surgeon import Surgeon
from lorachord.surgery.watch import Watch, read
from lorachord.training.trainer import MultiTaskTrainer
from lorachord.training.units import answers
from tests.tiny_data import own, recipe, rows, save_model, task_of, tokenizer, tree, write_data
from tests.tiny_models import tiny

TASKS = tuple(task_of(fields) for fields in own("colour", "size", "number", "choice"))
NAMES = [task.name for task in TASKS]
OPTIONS: dict[str, dict[str, Any]] = {
    "fixed": {"weights": {"colour": 2.0}},
    "uncertainty": {},
    "running_scale": {},
    "dwa": {"period": 2},
    "famo": {},
    "popart": {},
}


def trainer(out: Path, name: str | None, scale: float = 1.0, **settings: Any) -> MultiTaskTrainer:
    """One of four tasks, the numbers of one times `scale`."""
    torch.manual_seed(0)
    parts = [from_rows(task, {"train": rows(task, 80, 1), "dev": rows(task, 40, 2)}) for task in TASKS]
    number = [{**row, "label": scale * row["label"]} for row in rows(TASKS[2], 80, 1)]
    parts[2] = from_rows(TASKS[2], {"train": number})
    base = lc.add_heads(tiny("bert"), {task.name: task.num_outputs for task in TASKS})
    model = lc.attach(base, "lora", tasks=NAMES, r=4)
    balance = None
    if name is not None:
        own_answers = torch.tensor(answers(parts[2].train))
        start = {"number": (float(own_answers.mean()), float(own_answers.var()))} if name == "popart" else None
        balance = make_balance(name, NAMES, model=model, regressions=["number"], start=start, **OPTIONS[name])
    defaults = dict(max_steps=8, learning_rate=1e-2, logging_steps=1, save_strategy="steps", save_steps=4, report_to=[])
    args = TrainingArguments(output_dir=str(out), disable_tqdm=True, use_cpu=True, **{**defaults, **settings})
    mixture = TaskMixture([len(part.train) for part in parts], batch_size=8, num_batches=8)
    return MultiTaskTrainer(
        model,
        args,
        tasks=TASKS,
        tokenizer=tokenizer(),
        train_data=[part.train for part in parts],
        eval_data=[part.val for part in parts],
        mixture=mixture,
        task_weights=[1.0, 3.0, 1.0, 1.0],
        balance=balance,
    )


def parameters(made: MultiTaskTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in made.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path, name: str) -> None:
    whole, resumed = trainer(tmp_path / "out", name), trainer(tmp_path / "resumed", name)
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    for key, value in parameters(whole).items():
        # To a softmax over choices it makes no difference: its gradients are rounding, of which Adam makes steps.
        if not key.endswith("heads.choice.bias"):
            torch.testing.assert_close(parameters(resumed)[key], value, rtol=1e-4, atol=1e-6)
    for key, value in whole.balance.state_dict().items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(resumed.balance.state_dict()[key], value, rtol=1e-4, atol=1e-6, equal_nan=True)
    # And the balance has made a difference.
    plain = trainer(tmp_path / "plain", None)
    plain.train()
    assert any(not torch.equal(parameters(plain)[key], value) for key, value in parameters(whole).items())


def test_a_resumed_rule_remembers_what_an_uninterrupted_one_does(tmp_path: Path) -> None:
    whole, resumed = trainer(tmp_path / "out", None), trainer(tmp_path / "resumed", None)
    for made in (whole, resumed):
        made.surgeon = Surgeon(made.model, "significant")
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    assert whole.surgeon is not None
    assert resumed.surgeon is not None
    expected, found = whole.surgeon.rule.state(), resumed.surgeon.rule.state()
    assert expected
    for name, value in expected.items():
        # Fourth powers of small numbers, of gradients that agree to rounding.
        torch.testing.assert_close(found[name], value, rtol=1e-2, atol=1e-2 * float(value.abs().max()))


@pytest.mark.parametrize("name", OPTIONS)
def test_weights_are_logged_with_those_of_the_tasks(tmp_path: Path, name: str) -> None:
    made = trainer(tmp_path, name, max_steps=2, save_strategy="no")
    made.train()
    logged = [entry for entry in made.state.log_history if "loss" in entry][-1]
    for task, weight, scale in zip(NAMES, made.balance.weights_T.tolist(), [1.0, 3.0, 1.0, 1.0], strict=True):
        assert logged[f"weight_{task}"] == pytest.approx(weight * scale)
    if name == "fixed":
        assert [logged[f"weight_{task}"] for task in NAMES] == [2.0, 3.0, 1.0, 1.0]


def test_without_a_balance_no_weights_are_logged(tmp_path: Path) -> None:
    made = trainer(tmp_path, None, max_steps=1, save_strategy="no")
    made.train()
    assert not any(key.startswith("weight_") for entry in made.state.log_history for key in entry)


def test_what_uncertainty_learns_steps_by_its_own_gradient_alone(tmp_path: Path) -> None:
    settings = dict(max_steps=2, optim="sgd", learning_rate=0.5, lr_scheduler_type="constant", weight_decay=0.1)
    made = trainer(tmp_path, "uncertainty", save_strategy="no", **settings)
    expected, weights = torch.zeros(4), torch.tensor([1.0, 3.0, 1.0, 1.0])
    made.train()
    logged = [entry for entry in made.state.log_history if "loss" in entry]
    for entry in logged:
        losses = torch.tensor([entry.get(f"loss_{task}", 0.0) for task in NAMES])
        present = torch.tensor([f"loss_{task}" in entry for task in NAMES])
        slope = present * weights * (0.5 - torch.exp(-expected) * losses) / present.sum()
        # As many steps as there are entries: a gradient that is not cleared would be counted twice.
        expected = expected - 0.5 * slope
    torch.testing.assert_close(next(made.balance.parameters()).detach(), expected, rtol=1e-4, atol=1e-5)


def test_famo_sees_the_losses_of_the_same_batch_with_the_same_dropout(tmp_path: Path) -> None:
    seen = []
    made = trainer(tmp_path, "famo", max_steps=1, learning_rate=0.0, save_strategy="no")
    made.balance.after = lambda losses, counts_T=None: seen.append(losses)  # type: ignore[method-assign]
    made.train()
    assert len(seen) == 1
    logged = made.state.log_history[0]
    for index, loss in seen[0].items():
        assert float(loss) == pytest.approx(logged[f"loss_{NAMES[index]}"], rel=1e-6)


def test_what_famo_looks_at_again_is_no_observation_of_surgery(tmp_path: Path) -> None:
    found = []
    for name in ("famo", "running_scale"):
        made, sizes = trainer(tmp_path, name, max_steps=3, save_strategy="no"), []
        made.surgeon = Surgeon(made.model, "significant")
        observe = made.surgeon.rule.observe

        def watched(gramians: Any, sizes_S: Any, observe: Any = observe, sizes: list[Any] = sizes) -> None:
            sizes.append(sizes_S.tolist())
            observe(gramians, sizes_S)

        made.surgeon.rule.observe = watched  # type: ignore[method-assign]
        made.train()
        found.append(sizes)
    assert found[0] == found[1]
    assert all(sum(sizes) >= 8 for sizes in found[0])


def error(made: MultiTaskTrainer) -> float:
    """The squared error of the numbers, over their variance."""
    records = made.predict_tasks()["number"]
    return sum((one["prediction"] - one["label"]) ** 2 for one in records) / len(records) / float(made.variances[2])


def test_popart_learns_numbers_of_any_size_and_saves_a_plain_head(tmp_path: Path) -> None:
    found = {}
    for name, scale in (("popart", 1.0), ("popart", 1000.0), (None, 1000.0)):
        made = trainer(tmp_path, name, scale, max_steps=60, save_strategy="no", logging_strategy="no")
        made.mixture = TaskMixture([len(some) for some in made.train_data], batch_size=16, num_batches=60)
        made.train()
        found[name, scale] = error(made)
        if name is not None:
            records = made.predict_tasks()["number"]
            made.model.save_pretrained(tmp_path / "adapter")
            base = lc.add_heads(tiny("bert"), {task.name: task.num_outputs for task in TASKS})
            made.model = PeftModel.from_pretrained(base, tmp_path / "adapter")
            for one, other in zip(made.predict_tasks()["number"], records, strict=True):
                assert one["prediction"] == pytest.approx(other["prediction"], rel=1e-3, abs=1e-3 * scale)
    assert found["popart", 1.0] < 0.1
    assert found["popart", 1000.0] < 0.1
    # So does a plain head, which learns in the unit of its answers.
    assert found[None, 1000.0] < 0.1


# In recipes


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tiny("bert"), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), "colour", "size", "number")


def test_a_recipe_with_balance_and_surgery_leaves_weights_and_arrays(model: Path, data: Path, tmp_path: Path) -> None:
    made = recipe(
        model,
        "colour",
        "size",
        "number",
        balance={"name": "popart", "memory": 0.9},
        surgery={"rule": "ortho_lora"},
        training={"log_every": 2},
    )
    folder = train(made, tmp_path / "run", data_dir=data)
    watched = read(folder.path / "surgery")
    assert watched.steps.tolist() == [1, 2, 4, 6]
    assert watched.tasks == ("colour", "size", "number")
    assert np.isfinite(watched.moved).all()
    log = (folder.path / "log.jsonl").read_text()
    assert '"weight_colour"' in log
    assert train(made, tmp_path / "run", data_dir=data, resume=True).metrics == folder.metrics


def test_an_interrupted_run_with_balance_goes_on(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(
        model,
        "colour",
        "number",
        balance={"name": "popart"},
        surgery={"rule": "ortho_lora"},
        training={"save_every": 2},
    )
    whole = train(made, tmp_path / "whole", data_dir=data)
    see = Watch.see

    def interrupt(self: Watch, operation: Any, rule: Any, step: int) -> None:
        see(self, operation, rule, step)
        if step == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(Watch, "see", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(made, tmp_path / "cut", data_dir=data)
    monkeypatch.setattr(Watch, "see", see)
    resumed = train(made, tmp_path / "cut", data_dir=data, resume=True)
    one, other = (read(folder.path / "surgery") for folder in (whole, resumed))
    assert other.steps.tolist() == one.steps.tolist() == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(other.moved_in_all, one.moved_in_all, rtol=1e-2, atol=1e-4)
    for task in ("colour", "number"):
        assert resumed.metrics["dev"]["tasks"][task] == pytest.approx(whole.metrics["dev"]["tasks"][task], abs=1e-2)


def test_single_runs_have_nothing_to_balance(model: Path) -> None:
    made = recipe(model, "colour", "size", balance={"name": "running_scale"}, mode="single")
    assert all(alone.balance is None for alone in single_recipes(made, [10, 10]).values())


@pytest.mark.parametrize(
    ("tasks", "balance", "message"),
    [
        (["colour", "size"], {"name": "popart"}, "balance: popart rescales the heads of regressions: it needs a reg"),
        (["colour", "size"], {"name": "runing_scale"}, "balance: There is no balance 'runing_scale'. Did you mean"),
        (["colour", "size"], {"name": "dwa", "periods": 3}, "balance: dwa: there is no option 'periods'. Did you mean"),
        (["colour", "size"], {"name": "fixed", "weights": {"color": 2}}, "balance: fixed: weights names 'color', whi"),
        (["colour", "size"], {"name": "fixed", "tasks": []}, "balance: tasks is not for a recipe to say"),
        (["colour"], {"name": "uncertainty"}, "balance: uncertainty balances tasks against each other, and there is"),
    ],
)
def test_what_a_recipes_balance_cannot_be_is_refused(
    model: Path, tasks: list[str], balance: dict[str, Any], message: str
) -> None:
    made = recipe(model, *tasks, balance=balance)
    with pytest.raises(ValueError, match=r"^balance: ") as error:
        check(made, made.tasks.chosen())
    assert message in str(error.value)


def test_popart_and_one_shared_head_are_refused(model: Path) -> None:
    made = recipe_from(tree(model, "number", balance={"name": "popart"}, model={"heads": "shared"}))
    with pytest.raises(ValueError, match="it needs an encoder with a head for each task"):
        check(made, made.tasks.chosen())


def test_a_balance_without_a_name_is_refused(model: Path) -> None:
    with pytest.raises(ValueError, match=r"balance needs a name, as in \{name: running_scale\}"):
        recipe(model, "colour", "size", balance={"memory": 0.5})


@pytest.mark.parametrize("name", ["running_scale", "uncertainty"])
def test_surgery_sees_the_balanced_gradients(tmp_path: Path, name: str) -> None:
    settings = dict(max_steps=3, optim="sgd", learning_rate=0.1, max_grad_norm=0, save_strategy="no")
    plain, made = (trainer(tmp_path / which, name, **settings) for which in ("plain", "sum"))
    made.surgeon = Surgeon(made.model, "sum")
    for module in (*plain.model.modules(), *made.model.modules()):
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    plain.train()
    made.train()
    for key, value in parameters(plain).items():
        torch.testing.assert_close(parameters(made)[key], value, rtol=1e-4, atol=1e-6)
