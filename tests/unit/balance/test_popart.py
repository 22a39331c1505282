"""PopArt: heads whose units follow the answers."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lorachord as lc
from lorachord.balance.make import make_balance
from lorachord.balance.popart import PopArt, PopArtLinear
from lorachord.heads import TaskHeads
from tests.tiny_models import perturb, tiny

FEATURES = torch.randn(9, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def linear(dtype: torch.dtype = torch.float64) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 1, dtype=dtype)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def encoder(*tasks: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    base = lc.add_heads(tiny("bert"), dict.fromkeys(tasks, 1))
    model = lc.attach(base, "lora", tasks=tasks, r=4)
    perturb(model, 0.1)
    return model


def outputs(model: Any, task: str) -> Tensor:
    with torch.no_grad(), lc.on_task(model.eval(), task):
        found: Tensor = model(input_ids=torch.arange(3, 15).view(3, 4)).logits
    return found


@pytest.mark.parametrize(("mean", "std"), [(0.0, 3.0), (1e3, 1e-4), (-7.0, 1e6), (2.7, 1.4)])
def test_other_statistics_leave_the_outputs_as_they_were(mean: float, std: float) -> None:
    plain = linear()
    head = PopArtLinear.of(copy.deepcopy(plain))
    assert torch.equal(head(FEATURES), plain(FEATURES))
    head.rescale(scalar(2.0), scalar(0.5))
    weight, bias = head.weight.clone(), head.bias.clone()
    before = head(FEATURES)
    head.rescale(scalar(mean), scalar(std))
    torch.testing.assert_close(head(FEATURES), before, rtol=1e-11, atol=1e-11 * max(1, abs(mean)))
    torch.testing.assert_close(head.weight, weight * 0.5 / std)
    torch.testing.assert_close(head.bias, (0.5 * bias + 2.0 - mean) / std)


def test_the_gradient_is_that_of_the_normalised_error() -> None:
    head, answers = PopArtLinear.of(linear()), torch.randn(9, dtype=torch.float64) * 40 + 100
    head.rescale(scalar(100.0), scalar(40.0))
    loss = ((head(FEATURES)[:, 0] - answers) ** 2).mean() / head.std**2
    found = torch.autograd.grad(loss, [head.weight, head.bias])
    normalised = FEATURES @ head.weight[0] + head.bias - (answers - 100) / 40
    torch.testing.assert_close(found[0][0], 2 / 9 * normalised @ FEATURES)
    torch.testing.assert_close(found[1][0], 2 / 9 * normalised.sum())


def test_what_is_saved_is_a_plain_linear_and_loads_into_any_units() -> None:
    head, other, plain = PopArtLinear.of(linear()), PopArtLinear.of(linear()), linear()
    head.rescale(scalar(3.0), scalar(0.2))
    with torch.no_grad():
        head.weight.add_(1.0)
    saved = head.state_dict()
    assert saved.keys() == {"weight", "bias"}
    plain.load_state_dict(saved)
    other.rescale(scalar(-1.0), scalar(5.0))
    other.load_state_dict(saved)
    for loaded in (plain, other):
        torch.testing.assert_close(loaded(FEATURES), head(FEATURES))
    # And what was saved is still what it was.
    assert torch.equal(saved["weight"], plain.weight)


def test_without_a_bias_there_is_nothing_to_take_up_the_mean() -> None:
    with pytest.raises(ValueError, match="popart moves the bias"):
        PopArtLinear.of(nn.Linear(4, 1, bias=False))


@pytest.mark.parametrize("centre", [0.0, 1e4])
def test_statistics_are_the_running_moments_of_the_answers(centre: float) -> None:
    balance = make_balance(
        "popart", ["a", "b"], model=encoder("a", "b"), regressions=["b"], start={"b": (centre, 4.0)}, memory=0.9
    )
    answers = centre + torch.randn(30, 8, generator=torch.Generator().manual_seed(1))
    mean, second = scalar(centre), scalar(4.0) + centre**2
    for batch in answers:
        balance.before({1: batch})
        mean = 0.9 * mean + 0.1 * batch.double().mean()
        second = 0.9 * second + 0.1 * (batch.double() ** 2).mean()
    assert isinstance(balance, PopArt)
    torch.testing.assert_close(balance.mean_T[1].double(), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(balance.variances()[1].double(), second - mean**2, rtol=3e-3, atol=0)
    # Of the other task nothing is known.
    assert float(balance.mean_T[0]) == 0.0


def test_a_models_answers_stay_what_they_were_while_statistics_move_and_eval_moves_none() -> None:
    model = encoder("a", "b")
    before = {task: outputs(model, task) for task in "ab"}
    balance = make_balance("popart", ["a", "b"], model=model, regressions=["b"], start={"b": (50.0, 9.0)})
    for _ in range(5):
        balance.train().before({1: torch.tensor([40.0, 70.0])})
    state = copy.deepcopy(balance.state_dict())
    balance.eval().before({1: torch.tensor([1e6])})
    assert all(torch.equal(value, state[name]) for name, value in balance.state_dict().items())
    for task in "ab":
        torch.testing.assert_close(outputs(model, task), before[task], rtol=1e-4, atol=1e-4)


def test_a_loaded_state_moves_units_and_not_answers() -> None:
    model, other = encoder("a", "b"), encoder("a", "b")
    first = make_balance("popart", ["a", "b"], model=model, regressions=["b"])
    second = make_balance("popart", ["a", "b"], model=other, regressions=["b"])
    first.before({1: torch.tensor([40.0, 70.0])})
    before = outputs(other, "b")
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(second.variances()[1], first.variances()[1])
    torch.testing.assert_close(outputs(other, "b"), before, rtol=1e-5, atol=1e-5)


def test_answers_that_are_all_the_same_keep_a_deviation_above_0() -> None:
    balance = make_balance("popart", ["a"], model=encoder("a"), regressions=["a"], start={"a": (1.0, 0.0)})
    balance.before({0: torch.ones(4)})
    assert float(balance.variances()[0]) == pytest.approx(1e-8)


def test_weights_of_regressions_are_1_and_of_others_those_of_running_scale() -> None:
    losses = {0: torch.tensor(4.0), 1: torch.tensor(7.0)}
    balance = make_balance("popart", ["a", "b"], model=encoder("a", "b"), regressions=["b"])
    balance(losses)
    assert balance.weights_T.tolist() == [0.25, 1.0]


def test_a_head_of_several_layers_has_its_last_one_rescaled() -> None:
    heads = TaskHeads(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)), {"a.1": 1})
    PopArt(["a.1"], heads, ["a.1"])
    head = heads.of("a.1")
    assert isinstance(head, nn.Sequential)
    assert [type(module) for module in head] == [nn.Linear, nn.Tanh, PopArtLinear]


def test_saved_adapters_load_without_popart(tmp_path: Any) -> None:
    from peft import PeftModel

    model = encoder("a", "b")
    make_balance("popart", ["a", "b"], model=model, regressions=["b"], start={"b": (50.0, 9.0)})
    perturb(model, 0.1)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(lc.add_heads(tiny("bert"), {"a": 1, "b": 1}), tmp_path)
    for task in "ab":
        torch.testing.assert_close(outputs(again, task), outputs(model, task))
    merged = lc.merge(model, task="b")
    torch.testing.assert_close(
        merged.eval()(input_ids=torch.arange(3, 15).view(3, 4)).logits, outputs(again, "b"), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(("regressions", "message"), [([], "it needs a regression"), (["d"], "no task 'd'")])
def test_regressions_must_be_tasks(regressions: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_balance("popart", ["a", "b"], model=encoder("a", "b"), regressions=regressions)


def test_a_model_without_heads_per_task_is_refused() -> None:
    with pytest.raises(ValueError, match="it needs a head for each task"):
        make_balance("popart", ["a"], model=lc.attach(tiny("bert"), "lora", tasks=["a"]), regressions=["a"])
