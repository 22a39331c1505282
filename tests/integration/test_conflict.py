"""The warm-up that finds where tasks conflict: planted conflicts are found, and nothing else changes."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

import lorachord as lc
from lorachord.calibration.conflict import Conflict, measure_conflict
from lorachord.core.context import Context
from lorachord.methods.allot import Allot
from lorachord.runs.calibrating import calibration_of
from lorachord.runs.model import load_plain
from lorachord.runs.recipe import recipe_from
from lorachord.runs.tasksets import load_data
from lorachord.runs.train import train
from tests.tiny_data import recipe
from tests.tiny_models import tiny, token_ids

TASKS = ["even", "odd", "even too", "odd too"]
AGREE = {(0, 2), (1, 3)}


def batches(
    num_batches: int = 40, size: int = 8, flips: tuple[int, ...] = (1, 3)
) -> dict[str, list[dict[str, Tensor]]]:
    """Texts whose first token decides; for tasks that flip, the other way round."""
    made: dict[str, list[dict[str, Tensor]]] = {}
    for index, task in enumerate(TASKS):
        ids = [token_ids(size, 5, seed=1000 * index + batch) for batch in range(num_batches)]
        signs = [(tokens[:, 0] > 21).long() for tokens in ids]
        labels = [1 - sign if index in flips else sign for sign in signs]
        made[task] = [{"input_ids": tokens, "labels": label} for tokens, label in zip(ids, labels, strict=True)]
    return made


def encoder(seed: int = 0) -> nn.Module:
    return tiny("bert", seed, num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def measured(**changes: Any) -> Conflict:
    given = {"steps": 20, "learning_rate": 1e-2, "level": 0.05, "r": 4, **changes}
    own = given.pop("batches", None) or batches()
    return measure_conflict(given.pop("base", None) or encoder(), own, **given)


def test_planted_conflicts_are_found_and_agreements_are_not_taken_for_them() -> None:
    found = measured(batches=batches(60, 32), steps=30)
    pairs = found.of_pairs()
    conflicting = [pairs[i, j] for i, j in product(range(4), repeat=2) if i < j and (i, j) not in AGREE]
    assert min(conflicting) > max(pairs[i, j] for i, j in AGREE)
    assert all(not found.significant_NTT[:, i, j].any() for i, j in AGREE)
    assert max(found.of_modules().values()) > 0


def test_where_nothing_conflicts_nothing_is_significant() -> None:
    found = measured(batches=batches(flips=()))
    assert not found.significant_NTT.any()
    assert set(found.of_modules().values()) == {0.0}


def test_blocks_are_named_as_the_layers_to_adapt(architecture: str) -> None:
    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return model(input_ids=batch["input_ids"]).logits.logsumexp(-1).mean()

    found = measured(base=tiny(architecture), steps=2, loss=loss)
    assert list(found.of_modules()) == [layer.name for layer in lc.target_layers(tiny(architecture))]


def test_the_base_is_left_as_it_was() -> None:
    base = encoder()
    next(base.parameters()).requires_grad_(False)
    before = {name: (value.clone(), value.requires_grad) for name, value in base.named_parameters()}
    state = {name for name, _ in base.named_modules()}
    measured(base=base, steps=3)
    assert {name for name, _ in base.named_modules()} == state
    for name, value in base.named_parameters():
        assert torch.equal(value, before[name][0])
        assert value.requires_grad == before[name][1]
        assert value.grad is None


def test_a_model_without_a_loss_says_what_is_missing() -> None:
    unlabelled = {task: [{"input_ids": batch["input_ids"]} for batch in own] for task, own in batches(2).items()}
    with pytest.raises(ValueError, match="no loss: put `labels` into the batches"):
        measured(batches=unlabelled, steps=1)


def test_allot_splits_what_conflicts_and_saves_it_with_the_adapter(tmp_path: Path) -> None:
    calibration = lc.calibrate(
        encoder(), "allot", tasks=TASKS, batches=batches(), r=4, budget=0.25, warmup_steps=20, warmup_learning_rate=1e-2
    )
    chosen = set(calibration.found["split"])
    conflict = calibration.report["conflict"]
    assert 0 < len(chosen) <= len(conflict) // 4
    assert min(conflict[name] for name in chosen) >= max(
        value for name, value in conflict.items() if name not in chosen
    )
    model = lc.attach(encoder(), "allot", calibration=calibration)
    split = {layer.layer.name for layer in model.modules() if isinstance(layer, Allot) and layer.split}
    assert split == chosen
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    model.eval().save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(encoder(), tmp_path).eval()
    for task in TASKS:
        with lc.on_task(model, task), lc.on_task(loaded, task), torch.no_grad():
            expected = model(input_ids=token_ids()).logits
            torch.testing.assert_close(loaded(input_ids=token_ids()).logits, expected, rtol=1e-5, atol=1e-6)


def test_a_recipe_finds_its_conflicts_by_itself(tiny_bert: Path, task_files: Path, tmp_path: Path) -> None:
    method = {"name": "allot", "r": 2, "warmup_steps": 3, "choose": "random"}
    made = recipe(tiny_bert, "colour", "size", "number", "choice", method=method, training={"max_steps": 2})
    folder = train(made, tmp_path / "run", data_dir=task_files)
    calibration = lc.Calibration.load(folder.path / "calibration")
    assert calibration.method == "allot"
    assert set(calibration.report["conflict"]) == {
        name for name in calibration.report["conflict"] if name.startswith("bert.")
    }


def test_heads_see_the_task_and_the_adapter_its_half() -> None:
    base = lc.add_heads(encoder(), dict.fromkeys(TASKS, 2))
    seen: list[tuple[int, int]] = []

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        heads = next(module for module in model.modules() if isinstance(module, lc.TaskHeads))
        adapter = next(module for module in model.modules() if isinstance(module, lc.Adapter))
        tasks: list[int] = []

        def watch(module: nn.Module, args: tuple[Tensor, Tensor, Context]) -> None:
            tasks.append(int(args[2].task_ids_B))

        handle = adapter.register_forward_pre_hook(watch)
        logits = model(input_ids=batch["input_ids"]).logits
        handle.remove()
        seen.append((int(heads.shared.named[""].task_ids_B), *tasks))
        return nn.functional.cross_entropy(logits, batch["labels"])

    measured(base=base, steps=1, loss=loss)
    assert seen == [(place // 2, place) for place in range(8)]


@pytest.mark.slow
def test_the_labs_contradicting_pairs_are_told_from_the_others() -> None:
    made = recipe_from(
        {
            "model": {"name": "minilm", "kind": "encoder", "heads": "shared", "max_length": 32},
            "tasks": {"lab": {"name": "lab-contradiction", "k": 0.5, "num_tasks": 4}},
            "method": {"name": "allot", "warmup_steps": 30},
        }
    )
    data = load_data(made, made.tasks.chosen(), None)
    base, collated = load_plain(made, made.tasks.chosen())
    found = calibration_of(made, base, collated, data, None)
    assert found is not None
    pairs = [(i, j) for i in range(4) for j in range(i)]
    contradict = [(i - j) % 2 for i, j in pairs]
    assert roc_auc_score(contradict, [found.report["pairs"][i][j] for i, j in pairs]) == 1
    assert found.found["split"]
