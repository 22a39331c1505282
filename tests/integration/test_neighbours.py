"""Layers with the same input route in one go, and nothing else changes."""

import copy
import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lorachord as lc
from lorachord.core import contrast, pairs, rank_one, routing
from lorachord.core.adapter import Adapter
from lorachord.core.contrast import spread_tokens
from lorachord.methods import moelora
from lorachord.tuner import state
from tests.integration.helpers import METHODS, NO_DROPOUT, close, gradients, layers
from tests.tiny_models import perturb, tiny, token_ids

ROUTED = pytest.mark.parametrize(
    ("method", "options"),
    [
        ("hydralora", {"balance": 0.1, "z": 0.1}),
        ("mosld", {}),
        ("mode", {"r": 4, "block": 2}),
        ("malora", {}),
        ("moelora", {"contrastive": 0.1, "contrastive_tokens": 4}),
        ("mixlora", {}),
        ("mor1e", {}),
    ],
)
MASK = torch.ones(4, 7, dtype=torch.long)
MASK[1, 4:] = 0


def in_training(architecture: str, method: str, **options: Any) -> nn.Module:
    settings = {"mor1e": {"r1": 2, "r2": 2}, **METHODS}[method]
    # In float32 the order of sums would show.
    model = lc.attach(tiny(architecture, **NO_DROPOUT[architecture]).double(), method, **{**settings, **options})
    perturb(model, 0.3)
    if method == "mor1e":
        lc.fit_intuition(model, [{"input_ids": token_ids(num_samples=12, length=5, seed=4)}])
        for layer in layers(model).values():
            # The switches are a hundred times as steep as what else is perturbed.
            for switch in (layer.lorachord_adapter["default"].gate, layer.lorachord_adapter["default"].share):
                switch.data /= 100
    return model.train()


def step(model: nn.Module, seed: int = 1) -> dict[str, Tensor]:
    """The answers, the penalty and all gradients of a pass, and the routers' loads."""
    model.zero_grad()
    answers = model(input_ids=token_ids(seed=seed), attention_mask=MASK).logits
    penalty = lc.penalty(model)
    (answers.square().sum() + penalty).backward()
    return {"answers": answers, "penalty": penalty, **gradients(model), **lc.router_load(model, forget=True)}


def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts how often anything is routed."""
    count: Counter[str] = Counter()
    for function in (routing._Route, pairs._Choose, rank_one._RankOne):
        apply = function.apply
        monkeypatch.setattr(function, "apply", lambda *args, apply=apply: count.update(["routed"]) or apply(*args))
    return count


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert close(value, expected[name], 1e-9 * float(expected[name].detach().abs().max())), name


@ROUTED
@pytest.mark.parametrize(("architecture", "one_by_one", "together"), [("llama", 14, 8), ("bert", 13, 9)])
def test_routing_together_changes_nothing(
    architecture: str,
    one_by_one: int,
    together: int,
    method: str,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, count = in_training(architecture, method, **options), calls(monkeypatch)
    expected = step(model)
    assert count["routed"] == one_by_one
    count.clear()
    assert_same(step(model), expected)
    assert count["routed"] == together
    # And of another batch.
    found = step(model, seed=2)
    with monkeypatch.context() as patched:
        patched.setattr(Adapter, "neighbours", lambda self, ctx: None)
        expected = step(model, seed=2)
    assert_same(found, expected)


@ROUTED
@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_passes_before_one_backward_pass(method: str, options: dict[str, Any], checkpointing: bool) -> None:
    model = in_training("llama", method, **options)

    def both() -> dict[str, Tensor]:
        model.zero_grad()
        losses = []
        for seed in (1, 2):
            losses.append(model(input_ids=token_ids(seed=seed)).logits.square().sum() + lc.penalty(model))
        torch.stack(losses).sum().backward()
        return gradients(model)

    expected = both()
    if checkpointing:
        model.enable_input_require_grads()
        model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    assert_same(both(), expected)


def adapter_of(model: nn.Module, name: str) -> Adapter:
    return next(layer for path, layer in layers(model).items() if path.endswith(name)).active()[0]


@pytest.mark.parametrize("method", ["hydralora", "mixlora", "moelora", "mor1e"])
def test_an_adapter_whose_weights_are_not_at_hand_is_left_to_itself(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, count = in_training("llama", method), calls(monkeypatch)
    step(model)
    absent = adapter_of(model, "layers.0.self_attn.k_proj")
    weights = dict(absent.named_parameters())
    shapes = {name: weight.data for name, weight in weights.items()}

    def bring(*_: Any) -> None:
        for name, weight in weights.items():
            weight.data = shapes[name]

    def take(*_: Any) -> None:
        for weight in weights.values():
            weight.data = torch.empty(0)

    # As a launcher does that shards: the weights are there while their layer is called.
    absent.register_forward_pre_hook(bring)
    absent.register_forward_hook(take)
    take()
    count.clear()
    model(input_ids=token_ids())
    # The first block's query, key and value by themselves.
    assert count["routed"] == 10
    assert lc.penalty(model).isfinite()


@pytest.mark.parametrize("method", ["hydralora", "mixlora"])
def test_in_evaluation_each_layer_routes_by_itself(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, count = in_training("llama", method), calls(monkeypatch)
    step(model)
    model.eval()
    count.clear()
    assert torch.equal(step(model)["answers"], step(model)["answers"])
    assert count["routed"] == 28


@pytest.mark.parametrize("method", ["hydralora", "mixlora"])
def test_where_inputs_are_dropped_each_layer_drops_others(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, count = in_training("llama", method, dropout=0.5), calls(monkeypatch)
    for _ in range(2):
        count.clear()
        step(model)
        assert count["routed"] == 14


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_has_groups_of_its_own(copied: Callable[[nn.Module], nn.Module]) -> None:
    model = in_training("llama", "moelora", contrastive=0.1)
    step(model)
    twin = copied(model)
    expected = step(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert_same(step(twin), expected)


def test_an_adapter_under_the_name_of_another_learns_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    model, count = in_training("llama", "hydralora"), calls(monkeypatch)
    step(model)
    model.add_adapter("other", lc.LorachordConfig.build("hydralora", **METHODS["hydralora"]))
    model.set_adapter("other")
    model.delete_adapter("default")
    model.add_adapter("default", lc.LorachordConfig.build("hydralora", **METHODS["hydralora"]))
    model.set_adapter("default")
    for expected in (14, 8):
        count.clear()
        step(model)
        assert count["routed"] == expected


def test_which_tokens_moelora_looks_at_is_asked_once_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked, spread = in_training("llama", "moelora", contrastive=0.1, contrastive_tokens=4), [], spread_tokens
    monkeypatch.setattr(moelora, "spread_tokens", lambda *args: asked.append(args) or spread(*args))
    for num_passes in (1, 2):
        step(model)
        assert len(asked) == num_passes


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gram_matrices_are_made_before_the_pass(checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, made, grams_of = in_training("llama", "moelora", contrastive=0.1), [], contrast.grams_of
    if checkpointing:
        model.enable_input_require_grads()
        model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    monkeypatch.setattr(moelora, "grams_of", lambda ups: made.append(len(ups)) or grams_of(ups))
    step(model)
    found = step(model)
    assert made == [14, 14]
    made.clear()
    monkeypatch.setattr(moelora.MoELoRA, "core_weights", lambda some: None)
    assert_same(step(model), found)
    assert len(made) == (28 if checkpointing else 14)


def test_what_cores_share_is_made_of_adapters_that_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked, core_weights = in_training("llama", "moelora", num_experts=[2, 3]), [], moelora.MoELoRA.core_weights
    monkeypatch.setattr(
        moelora.MoELoRA, "core_weights", lambda adapters: asked.append(adapters) or core_weights(adapters)
    )
    model(input_ids=token_ids())
    assert [{one.config.num_experts for one in some} for some in asked] == [{2}, {3}]


def test_gram_matrices_are_made_for_adapters_that_act(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked, core_weights = in_training("llama", "moelora"), [], moelora.MoELoRA.core_weights
    model.add_adapter("other", lc.LorachordConfig.build("moelora", **METHODS["moelora"]))
    monkeypatch.setattr(
        moelora.MoELoRA, "core_weights", lambda adapters: asked.append(adapters) or core_weights(adapters)
    )
    model(input_ids=token_ids())
    assert [some[0] for some in asked] == [next(iter(layers(model).values())).lorachord_adapter["default"]]
    with model.disable_adapter():
        model(input_ids=token_ids())
    assert len(asked) == 1
    # Whose weights FSDP shards, it must find them whole in their layers.
    monkeypatch.setattr(state, "is_sharded", lambda model: True)
    model(input_ids=token_ids())
    assert len(asked) == 1
    assert lc.penalty(model).isfinite()


def test_gradients_per_task_have_those_of_the_contrastive_loss_in_them() -> None:
    model = in_training("llama", "moelora", contrastive=0.1, tasks=["a", "b"])
    step(model)
    expected = gradients(model)
    surgeon = lc.Surgeon(model)
    with lc.on_task(model, [0, 0, 1, 1]):
        step(model)
    found = surgeon.gradients.collect()
    parameters = {id(parameter): name for name, parameter in model.named_parameters()}
    names = {key: parameters[id(parameter)] for key, parameter in surgeon.gradients.parameters.items()}
    assert_same(
        {name: found[key].sum(0) for key, name in names.items()}, {name: expected[name] for name in names.values()}
    )
