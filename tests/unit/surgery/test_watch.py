"""Surgery written down: the arrays say what the operations said."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lorachord as lc
from lorachord.surgery.operation import Operation
from lorachord.surgery.rules import OrthoLora, Rule
from lorachord.surgery.significant import Significant
from lorachord.surgery.surgeon import Surgeon
from lorachord.surgery.watch import Watch, read
from tests.tiny_models import perturb, tiny, token_ids

TASKS = ["a", "b", "c"]
KEYS = (("x", "down"), ("x", "up"))


def operation(seed: int = 0, present: tuple[int, ...] = (0, 1, 2), rule: Rule | None = None) -> Operation:
    gradients = torch.randn(2, len(present), 5, generator=torch.Generator().manual_seed(seed))
    gramians = gradients @ gradients.transpose(1, 2)
    return Operation(KEYS, present, gramians, (rule or OrthoLora()).weights(gramians, 0))


def test_the_arrays_are_what_the_operations_said(tmp_path: Path) -> None:
    watch, operations = Watch(tmp_path, TASKS, every=2), [operation(seed) for seed in range(5)]
    for step, one in enumerate(operations, 1):
        watch.see(one, OrthoLora(), step)
    found = read(tmp_path)
    assert found.steps.tolist() == [1, 2, 4]
    assert (found.tasks, found.keys) == (("a", "b", "c"), KEYS)
    assert found.cosines.shape == (3, 2, 3, 3)
    for at, step in enumerate(found.steps):
        one = operations[step - 1]
        torch.testing.assert_close(torch.tensor(found.cosines[at]).float(), one.cosines, rtol=1e-3, atol=1e-3)
        assert found.negative[at].mean() == pytest.approx(one.conflicts)
        assert found.moved_in_all[at] == pytest.approx(one.moved)
        for block in range(2):
            alone = Operation(
                KEYS[:1], one.present, one.gramians_NTT[block : block + 1], one.weights_NT[block : block + 1]
            )
            assert found.moved[at, block] == pytest.approx(alone.moved, rel=1e-5)
    assert np.isnan(found.significant).all()


def test_absent_tasks_and_zero_gradients_have_no_cosine(tmp_path: Path) -> None:
    one = operation(present=(0, 2))
    one.gramians_NTT[0, 1] = one.gramians_NTT[0, :, 1] = 0
    Watch(tmp_path, TASKS).see(one, OrthoLora(), 1)
    found = read(tmp_path)
    assert np.isfinite(found.cosines[0, 0]).tolist() == [[True, False, False], [False] * 3, [False] * 3]
    assert np.isfinite(found.cosines[0, 1]).tolist() == [[True, False, True], [False] * 3, [True, False, True]]
    assert np.isnan(found.negative[0, 0])
    assert found.negative[0, 1] == float(one.gramians_NTT[1, 0, 1] < 0)


def test_a_step_in_which_no_task_has_a_gradient_has_nothing_to_say(tmp_path: Path) -> None:
    Watch(tmp_path, TASKS).see(Operation(KEYS, (), torch.zeros(2, 0, 0), torch.zeros(2, 0)), OrthoLora(), 1)
    found = read(tmp_path)
    assert np.isnan(found.cosines).all()
    assert np.isnan(found.negative).all()
    assert found.moved.tolist() == [[0, 0]]


def test_significant_conflicts_are_the_rules_own(tmp_path: Path) -> None:
    rule = Significant()
    rule.significant_NTT = torch.zeros(2, 3, 3, dtype=torch.bool)
    rule.significant_NTT[1, 0, 1] = rule.significant_NTT[1, 1, 0] = True
    Watch(tmp_path, TASKS).see(operation(), rule, 1)
    assert read(tmp_path).significant[0] == pytest.approx(2 / 12)


def test_a_resumed_run_goes_on_where_its_checkpoint_was(tmp_path: Path) -> None:
    first = Watch(tmp_path, TASKS, every=1)
    for step in range(1, 8):
        first.see(operation(step), OrthoLora(), step)
    (tmp_path / ".step_000008.npz.part").write_bytes(b"cut off")
    again = Watch(tmp_path, TASKS, every=1)
    again.see(operation(100), OrthoLora(), 5)
    found = read(tmp_path)
    assert found.steps.tolist() == [1, 2, 3, 4, 5]
    assert found.moved_in_all[4] == pytest.approx(operation(100).moved)
    assert found.moved_in_all[3] == pytest.approx(operation(4).moved)


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    Watch(tmp_path / "surgery", TASKS, write=False).see(operation(), OrthoLora(), 1)
    assert not (tmp_path / "surgery").exists()
    with pytest.raises(ValueError, match="holds no steps of surgery"):
        read(tmp_path / "surgery")


def test_numpy_alone_reads_a_step(tmp_path: Path) -> None:
    Watch(tmp_path, TASKS).see(operation(), OrthoLora(), 10)
    with np.load(tmp_path / "step_000010.npz", allow_pickle=False) as step:
        assert sorted(step) == ["cosines", "moved", "moved_in_all", "negative", "significant", "step"]
        assert step["step"] == 10
    with np.load(tmp_path / "blocks.npz", allow_pickle=False) as blocks:
        assert blocks["tasks"].tolist() == TASKS
        assert blocks["keys"].tolist() == [list(key) for key in KEYS]


@pytest.mark.parametrize("rule", ["ortho_lora", "significant"])
def test_a_surgeons_operations_are_written_from_the_first_on(tmp_path: Path, rule: str) -> None:
    model: Any = lc.attach(tiny("llama"), "lora", tasks=TASKS, r=2)
    surgeon, watch = Surgeon(model, rule), Watch(tmp_path, TASKS, every=1)
    # At the start B is 0, and so is every gradient of A.
    for step, tasks in enumerate((["a", "a", "b", "b"], ["a", "b", "b", "c"]), 1):
        with lc.on_task(model, tasks):
            model.train()(input_ids=token_ids()).logits.logsumexp(-1).mean().backward()
        watch.see(surgeon.operate(), surgeon.rule, step)
        model.zero_grad()
        perturb(model)
    found = read(tmp_path)
    assert found.keys == tuple(surgeon.gradients.parameters)
    down = np.array([factor == "down" for _, factor in found.keys])
    assert np.isnan(found.cosines[0, down]).all()
    assert np.isfinite(found.cosines[0, ~down][:, :2, :2]).all()
    assert np.isnan(found.cosines[0, :, 2]).all()
    assert np.isfinite(found.cosines[1]).all()
    assert found.significant.tolist() == [0, 0] if rule == "significant" else np.isnan(found.significant).all()
