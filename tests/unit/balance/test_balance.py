"""Balances of losses, against their formulas and TorchJD's."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torchjd import scalarization

from lorachord.balance.base import Balance
from lorachord.balance.make import balance_names, check_balance, make_balance

TASKS = ["a", "b", "c"]
OPTIONS: dict[str, dict[str, Any]] = {
    "equal": {},
    "fixed": {"weights": {"a": 2.0}},
    "uncertainty": {},
    "running_scale": {},
    "dwa": {"period": 2},
    "famo": {},
}


def made(name: str, **options: Any) -> Balance:
    return make_balance(name, TASKS, **{**OPTIONS[name], **options})


def leaves(*values: float) -> Tensor:
    return torch.tensor(values, requires_grad=True)


def gradient(balance: Balance, losses_T: Tensor) -> Tensor:
    """Of the losses, as the balance weighs them: its weights over T."""
    return torch.autograd.grad(balance(dict(enumerate(losses_T))), losses_T)[0]


def random_losses(steps: int) -> Tensor:
    return torch.rand(steps, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([5.0, 1.0, 0.01]) + 1e-3


def test_equal_is_the_mean_over_the_tasks_that_occur() -> None:
    torch.testing.assert_close(made("equal")({"a": torch.tensor(1.0), "c": torch.tensor(3.0)}), torch.tensor(2.0))


@pytest.mark.parametrize("name", OPTIONS)
def test_names_and_numbers_of_tasks_are_the_same(name: str) -> None:
    losses = leaves(3.0, 1.0, 2.0)
    by_name = made(name)(dict(zip(TASKS, losses, strict=True)))
    torch.testing.assert_close(by_name, made(name)(dict(enumerate(losses))))


@pytest.mark.parametrize("name", OPTIONS)
def test_scales_multiply_the_weights(name: str) -> None:
    losses, scales = leaves(3.0, 1.0, 2.0), torch.tensor([1.0, 0.0, 5.0])
    plain = gradient(made(name), losses)
    total = made(name)(dict(enumerate(losses)), scales=scales.tolist())
    torch.testing.assert_close(torch.autograd.grad(total, losses)[0], plain * scales)


def test_fixed_weights_are_1_where_none_is_given() -> None:
    torch.testing.assert_close(3 * gradient(made("fixed"), leaves(1.0, 1.0, 1.0)), torch.tensor([2.0, 1.0, 1.0]))


def test_a_running_scale_is_the_mean_with_fading_weights() -> None:
    balance, losses = made("running_scale", memory=0.9), random_losses(6)
    for step in range(6):
        found = 3 * gradient(balance, losses[step].requires_grad_())
        fading = 0.9 ** torch.arange(step, -1, -1.0)
        expected = (fading.unsqueeze(1) * losses[: step + 1]).sum(0) / fading.sum()
        torch.testing.assert_close(found, 1 / expected)


def test_a_running_scale_makes_constant_losses_of_any_size_1() -> None:
    balance = made("running_scale")
    for _ in range(3):
        torch.testing.assert_close(balance(dict(enumerate(leaves(1e-3, 1.0, 1e5)))), torch.tensor(1.0))


def tensors(balance: Balance) -> dict[str, Tensor]:
    """What a balance remembers."""
    return {key: value.clone() for key, value in balance.state_dict().items() if isinstance(value, Tensor)}


@pytest.mark.parametrize(
    ("name", "key"), [("running_scale", "sums_T"), ("running_scale", "known_T"), ("famo", "last_T")]
)
def test_an_absent_task_teaches_nothing(name: str, key: str) -> None:
    balance = made(name)
    for losses in random_losses(5):
        balance(dict(enumerate(losses)))
    before = tensors(balance)[key]
    balance({0: torch.tensor(9.0)})
    assert before[0] != tensors(balance)[key][0]
    assert torch.equal(before[1:], tensors(balance)[key][1:])


def test_dwa_takes_a_tasks_mean_over_the_batches_in_which_it_occurs() -> None:
    balance, full = made("dwa", period=4), made("dwa", period=2)
    for first, second in random_losses(8).view(4, 2, 3):
        for half in ({0: first[0], 1: first[1], 2: first[2]}, {0: second[0], 1: second[1], 2: second[2]}):
            full(half)
            balance(half)
            balance({0: half[0]})
    assert balance.weights_T.std() > 1e-2
    torch.testing.assert_close(balance.weights_T, full.weights_T)


def test_an_absent_tasks_uncertainty_learns_nothing() -> None:
    balance = made("uncertainty")
    own = torch.autograd.grad(balance({0: torch.tensor(9.0)}), balance.parameters())[0]
    assert own.tolist() == [-8.5, 0.0, 0.0]


@pytest.mark.parametrize("name", ["running_scale", "famo"])
def test_losses_that_are_no_numbers_are_not_remembered(name: str) -> None:
    balance = made(name)
    for losses in random_losses(5):
        balance(dict(enumerate(losses)))
    before = tensors(balance)
    balance({0: torch.tensor(math.nan), 1: torch.tensor(math.inf)})
    assert all(torch.equal(value, before[key]) for key, value in tensors(balance).items())


def test_dwa_leaves_losses_that_are_no_numbers_out_of_its_means() -> None:
    balance = made("dwa", period=1)
    for _ in range(4):
        balance({0: torch.tensor(math.nan), 1: torch.tensor(2.0), 2: torch.tensor(1.0)})
    assert balance.weights_T.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("name", ["running_scale", "dwa", "famo"])
def test_nothing_is_remembered_in_eval_mode(name: str) -> None:
    balance = made(name)
    balance(dict(enumerate(random_losses(1)[0])))
    before = tensors(balance)
    balance.eval()({0: torch.tensor(7.0), 1: torch.tensor(8.0)})
    for key, value in tensors(balance).items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0, equal_nan=True)


def test_uncertainty_is_torchjds_shifted_by_log_2() -> None:
    balance, losses = made("uncertainty"), leaves(4.0, 1.0, 0.1)
    s = torch.tensor([0.3, -0.5, 1.0])
    other = scalarization.UW(3)
    with torch.no_grad():
        next(balance.parameters()).copy_(s)
        other.log_var.copy_(s - math.log(2))
    own = torch.autograd.grad(balance(dict(enumerate(losses))), [losses, *balance.parameters()])
    theirs = torch.autograd.grad(other(losses), [losses, other.log_var])
    for found, expected in zip(own, theirs, strict=True):
        torch.testing.assert_close(3 * found, expected)


def test_uncertainty_learns_weights_of_half_the_inverse_loss() -> None:
    balance, losses = made("uncertainty"), leaves(4.0, 1.0, 0.1)
    optimizer = torch.optim.SGD(balance.parameters(), lr=0.5)
    for _ in range(400):
        optimizer.zero_grad()
        balance(dict(enumerate(losses))).backward()
        optimizer.step()
    torch.testing.assert_close(balance.weights_T, 1 / (2 * losses.detach()), rtol=1e-3, atol=0)


def test_dwa_is_torchjds_where_no_task_is_absent() -> None:
    balance, other = made("dwa", period=4), scalarization.DWA()
    seen = []
    for step, losses in enumerate(random_losses(20)):
        losses.requires_grad_()
        found = 3 * gradient(balance, losses)
        seen.append(found)
        torch.testing.assert_close(found, torch.autograd.grad(other(losses), losses)[0])
        if step % 4 == 3:
            other.step()
    assert torch.equal(seen[7], torch.ones(3))
    assert not torch.allclose(seen[8], torch.ones(3), atol=1e-2)


def test_famo_is_torchjds_where_no_task_is_absent() -> None:
    balance, other = made("famo", learning_rate=0.1), scalarization.FAMO(3, lr=0.1)
    losses = random_losses(21)
    for before, after in pairwise(losses):
        before.requires_grad_()
        torch.testing.assert_close(gradient(balance, before), torch.autograd.grad(other(before), before)[0])
        balance.after(dict(enumerate(after)))
        other.update(after)
    assert balance.weights_T.std() > 0.1


@pytest.mark.parametrize("name", OPTIONS)
def test_a_saved_balance_goes_on_as_if_nothing_had_been(name: str, tmp_path: Any) -> None:
    balance, losses = made(name), random_losses(12)

    def go_on(some: Balance, steps: Tensor) -> Tensor:
        for loss_T in steps:
            some(dict(enumerate(loss_T)))
            some.after({0: loss_T[0] * 0.7, 1: loss_T[1], 2: loss_T[2] * 0.9})
        return some.weights_T

    go_on(balance, losses[:7])
    torch.save(balance.state_dict(), tmp_path / "state.pt")
    again = made(name)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(go_on(again, losses[7:]), go_on(balance, losses[7:]))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("runing_scale", {}, "no balance 'runing_scale'. Did you mean 'running_scale'"),
        ("running_scale", {"memroy": 0.9}, "running_scale: there is no option 'memroy'. Did you mean 'memory'"),
        ("running_scale", {"memory": 1.0}, "memory must be a number between 0 and 1; found 1.0"),
        ("running_scale", {"memory": "long"}, "memory must be a number between 0 and 1; found 'long'"),
        ("uncertainty", {"memory": 0.5}, "uncertainty: there is no option 'memory'. Known: none"),
        ("fixed", {}, "fixed: weights is missing"),
        ("fixed", {"weights": {"aa": 1.0}}, "weights names 'aa', which is no task. Did you mean 'a'"),
        ("fixed", {"weights": {"a": -1}}, "the weight of 'a' must be a number from 0 on; found -1"),
        ("fixed", {"weights": {"a": math.inf}}, "must be a number from 0 on; found inf"),
        ("fixed", {"weights": [1, 2, 3]}, "weights must map tasks to numbers"),
        ("dwa", {"period": 0}, "period must be a whole number of batches from 1 on; found 0"),
        ("dwa", {"temperature": -1}, "temperature must be a number between 0 and inf; found -1"),
        ("famo", {"learning_rate": 0}, "learning_rate must be a number between 0 and inf; found 0"),
        ("famo", {"weight_decay": -1}, "weight_decay must be a number between 0 and inf; found -1"),
        ("popart", {}, "it needs a regression among the tasks. running_scale needs neither"),
        ("popart", {"memory": 2}, "popart: memory must be a number between 0 and 1; found 2"),
        ("popart", {"period": 2}, "popart: there is no option 'period'. Known: memory"),
    ],
)
def test_what_cannot_be_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"^[\s\S]*") as error:
        check_balance(name, TASKS, **options)
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["uncertainty", "running_scale", "dwa", "famo"])
def test_one_task_alone_is_not_balanced(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} balances tasks against each other, and there is one alone"):
        check_balance(name, ["a"])


def test_popart_wants_heads_per_task_and_a_model() -> None:
    with pytest.raises(ValueError, match="it needs an encoder with a head for each task"):
        check_balance("popart", TASKS, regressions=["a"], per_task_heads=False)
    with pytest.raises(ValueError, match="give the model, with a head for each task"):
        make_balance("popart", TASKS, regressions=["a"])


def test_a_task_that_there_is_not_is_named_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"There is no task 'bb'\. Did you mean 'b'"):
        made("equal")({"bb": torch.tensor(1.0)})


def test_every_balance_is_listed() -> None:
    assert set(balance_names()) == {*OPTIONS, "popart"}
