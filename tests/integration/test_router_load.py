"""How much each expert is used, as a model's user sees it."""

import peft
import pytest
import torch

import lorachord as lc
from tests.tiny_models import perturb, tiny, token_ids

ROUTED = {
    "hydralora": {"r": 2},
    "mosld": {"r": 2},
    "mode": {"r": 2},
    "malora": {"r": 2, "top_k": 3},
    "moelora": {"r": 2, "num_experts": 4},
    "mixlora": {"r": 2, "num_experts": 4},
    "mor1e": {"r1": 2, "r2": 3},
}


def routed(base: torch.nn.Module, method: str) -> peft.PeftModel:
    model = lc.attach(base, method, tasks=["a"], **ROUTED[method])
    if method == "mor1e":
        lc.fit_intuition(model, [{"input_ids": token_ids(8, seed=3)}])
    return model


@pytest.mark.parametrize("method", ROUTED)
def test_loads_are_shares_by_layer_and_go_on_until_forgotten(method: str) -> None:
    model = routed(tiny("llama"), method)
    assert lc.router_load(model) == {}
    # A pair of MixLoRA whose weight is too small for a number is none that a prompt uses.
    perturb(model, 0.1 if method == "mixlora" else 0.5)
    model(input_ids=token_ids())
    first = lc.router_load(model)
    assert first.keys() == {layer.name for layer in lc.target_layers(tiny("llama"))}
    for load in first.values():
        torch.testing.assert_close(load.sum(-1), torch.ones_like(load.sum(-1)))
    model(input_ids=token_ids(seed=5))
    both = lc.router_load(model, forget=True)
    model(input_ids=token_ids(seed=5))
    second = lc.router_load(model)
    for name, load in both.items():
        torch.testing.assert_close(load, (first[name] + second[name]) / 2)
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert not any("load" in key or "total" in key for key in model.state_dict())


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_does_not_count(side: str) -> None:
    model = lc.attach(tiny("bert"), "mosld", tasks=["a"], r=2, num_experts=4).eval()
    perturb(model, 0.5)
    tokens, mask = token_ids(), torch.ones(4, 7, dtype=torch.long)
    positions = torch.arange(7).expand(4, -1)
    model(input_ids=tokens, attention_mask=mask, position_ids=positions)
    plain = lc.router_load(model, forget=True)
    padding = torch.zeros(4, 3, dtype=torch.long)
    both = [[value, padding] if side == "right" else [padding, value] for value in (tokens, mask, positions)]
    names = ("input_ids", "attention_mask", "position_ids")
    model(**{name: torch.cat(parts, 1) for name, parts in zip(names, both, strict=True)})
    padded = lc.router_load(model)
    # The pooler sees the first token of each sample, whatever it is.
    for name in (name for name in plain if "pooler" not in name):
        torch.testing.assert_close(padded[name], plain[name])


def test_a_recompute_does_not_count() -> None:
    found = []
    for checkpointing in (False, True):
        model = lc.attach(tiny("llama"), "malora", tasks=["a"], r=2).train()
        perturb(model)
        if checkpointing:
            model.enable_input_require_grads()
            model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
        for seed in (1, 2):
            (model(input_ids=token_ids(seed=seed)).logits.sum() + lc.penalty(model)).backward()
        found.append({name: adapter.router.total for name, adapter in adapters(model).items()})
    for name, total in found[0].items():
        assert torch.equal(found[1][name], total)
        assert float(total.sum()) == 2 * 28 * 2


def adapters(model: torch.nn.Module) -> dict[str, lc.methods.MALoRA]:
    return {module.layer.name: module for module in model.modules() if isinstance(module, lc.methods.MALoRA)}


def test_models_without_routers_have_no_loads() -> None:
    model = lc.attach(tiny("bert"), "lora", tasks=["a"])
    model(input_ids=token_ids())
    assert lc.router_load(model) == {}


def test_the_factors_of_mixlora_are_counted_once_a_prompt() -> None:
    model = routed(tiny("llama"), "mixlora")
    # Without weights all factors are equal.
    for module in model.modules():
        if isinstance(module, lc.methods.MixLoRA):
            with torch.no_grad():
                module.router.zero_()
                module.router_pairs.zero_()
    model.generate(input_ids=token_ids(), max_new_tokens=3, min_new_tokens=3, pad_token_id=0)
    for module in model.modules():
        if isinstance(module, lc.methods.MixLoRA):
            assert module.total is not None
            # Four prompts chose two pairs each, whatever was written after them.
            assert module.total.sum(0).tolist() == [8, 8]
    for load in lc.router_load(model).values():
        # Ties fall on the same factors for each prompt.
        assert sorted(load[0].tolist()) == [0, 0, 0.5, 0.5]
        assert sorted(load[1].tolist()) == [0, 0, 0.5, 0.5]


def test_the_gates_and_clusters_of_mor1e_are_counted() -> None:
    model = routed(tiny("llama"), "mor1e")
    # Its router starts at zero, so that all gates are equal.
    with lc.on_task(model, None, embedding=torch.ones(4, 16)):
        model(input_ids=token_ids())
    for load in lc.router_load(model, forget=True).values():
        torch.testing.assert_close(load[0], torch.full((6,), 1 / 6))
        assert sorted(load[1].tolist()) == [0, 0, 0, 0, 0, 1]
    model.generate(input_ids=token_ids(), max_new_tokens=3, min_new_tokens=3, pad_token_id=0)
    for module in model.modules():
        if isinstance(module, lc.methods.MoR1E):
            assert module.total is not None
            # Seven tokens of each prompt, and two that were written and read again; four prompts.
            assert module.total.sum(0).tolist() == pytest.approx([4 * 9, 4])
