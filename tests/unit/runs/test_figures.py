"""Routing, interference, conflicts, ThanoRA's ranks and Concrete's masks of cases that are known by hand."""

import math
from typing import Any

import numpy as np
import pytest
import torch

import lorachord as lc
from lorachord.runs.inspect import conflicts, interference, masks, routing, task_ranks
from lorachord.surgery.watch import Watched
from tests.tiny_models import perturb, tiny

ROUTED: dict[str, dict[str, Any]] = {
    "hydralora": {"r": 2, "num_experts": 4},
    "mosld": {"r": 2, "num_experts": 4},
    "mode": {"r": 2, "num_experts": 4},
    "malora": {"r": 2, "num_experts": 4},
    "moelora": {"r": 2, "num_experts": 4},
    "mixlora": {"r": 2, "num_experts": 4},
    "mor1e": {"r1": 2, "r2": 2},
}
SIGNS = torch.tensor([1.0, 1.0, -1.0, -1.0])


def routed(method: str) -> Any:
    """One layer whose input is +1 in all features for the tokens of a, -1 for those of b; two experts want either."""
    base = tiny("llama")
    with torch.no_grad():
        base.model.embed_tokens.weight[:20], base.model.embed_tokens.weight[20:] = 1, -1
    where = {"target_modules": ["q_proj"], "layers_to_transform": [0]}
    model = lc.attach(base, method, tasks=["a", "b"], **where, **ROUTED[method])
    if method == "mor1e":
        lc.fit_intuition(model, torch.eye(16)[[0, 0, 1, 1, 2, 3]])
    for name, parameter in model.named_parameters():
        if "router" in name:
            with torch.no_grad():
                wants = SIGNS.repeat_interleave(2) if method == "mode" else SIGNS.repeat(len(parameter) // 4)
                parameter.copy_(0 if "router_pairs" in name else 20 * wants[:, None].expand_as(parameter))
    return model


def prompts(method: str) -> dict[str, list[dict[str, torch.Tensor]]]:
    made: dict[str, list[dict[str, torch.Tensor]]] = {}
    for at, (task, tokens) in enumerate({"a": torch.arange(3, 15), "b": torch.arange(21, 33)}.items()):
        batch = {"input_ids": tokens.view(3, 4)}
        if method == "mor1e":
            batch["embedding"] = torch.eye(16)[[at, at, at]]
        made[task] = [batch, batch]
    return made


@pytest.mark.parametrize("method", ROUTED)
def test_routing_shows_the_experts_that_a_router_was_made_to_pick(method: str) -> None:
    found = routing(routed(method), prompts(method))
    assert found.layers == ("model.layers.0.self_attn.q_proj",)
    wanted = np.array([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
    clusters = "prompt clusters" if method == "mor1e" else None
    for group, name in enumerate(found.groups):
        usage = found.usage[0, :, group]
        if name == clusters:
            assert sorted(usage[0]) == sorted(usage[1]) == [0, 0, 0, 1]
            assert (usage[0] * usage[1]).sum() == 0
        else:
            assert usage == pytest.approx(wanted, abs=1e-5)
        assert found.in_use[0, :, group].tolist() == pytest.approx([1, 1] if name == clusters else [2, 2], abs=1e-4)
    assert found.between_tasks == pytest.approx(np.ones((1, len(found.groups))), abs=1e-5)
    assert found.chance == pytest.approx(np.zeros((1, len(found.groups))), abs=1e-6)
    assert "they have mostly experts of their own" in found.words
    assert len(found.groups) == {"mode": 2, "mixlora": 2, "mor1e": 2}.get(method, 1)


def test_routing_of_equal_prompts_is_no_more_than_chance() -> None:
    same = prompts("hydralora")["a"]
    found = routing(routed("hydralora"), {"a": same, "b": same})
    assert found.between_tasks.item() == 0
    assert "no more than chance" in found.words


def test_halves_of_different_size_count_by_their_rows() -> None:
    own = prompts("hydralora")
    # Three rows as task a's, and three more rows of which one is as b's.
    mixed = [own["a"][0], {"input_ids": torch.cat([own["a"][0]["input_ids"], own["b"][0]["input_ids"]])}]
    found = routing(routed("hydralora"), {"a": mixed})
    assert found.usage[0, 0, 0].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 6, 1 / 6], abs=1e-5)
    assert found.chance.item() == pytest.approx(0.5, abs=1e-5)
    assert "There is one task." in found.words


def test_routing_of_what_does_not_choose_is_refused() -> None:
    model = lc.attach(tiny("llama"), "lora", tasks=["a"], r=2)
    with pytest.raises(ValueError, match="has no router"):
        routing(model, {"a": prompts("lora")["a"]})
    with pytest.raises(ValueError, match="no batches of b"):
        routing(model, {"a": prompts("lora")["a"], "b": []})


# Interference


def test_interference_of_linear_losses_is_the_cosine_of_their_slopes() -> None:
    model = lc.attach(tiny("llama"), "lora", tasks=["a", "b", "c", "d"], r=2)
    perturb(model)
    own = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in own]
    down, up = (next(p for name, p in model.named_parameters() if name.endswith(end)) for end in ("down", "up"))

    def loss(_: torch.nn.Module, slopes: tuple[float, float]) -> torch.Tensor:
        return slopes[0] * down[0, 0] + slopes[1] * up[0, 0]

    slopes = {"a": (1.0, 0.0), "b": (-2.0, 0.0), "c": (0.0, 3.0), "d": (1.0, 1.0)}
    found = interference(model, {task: [pair] for task, pair in slopes.items()}, loss)
    half = 1 / math.sqrt(2)
    cosines = np.array([[1, -1, 0, half], [-1, 1, 0, -half], [0, 0, 1, half], [half, -half, half, 1]])
    assert found.cosines == pytest.approx(cosines, abs=1e-5)
    assert found.values == pytest.approx(cosines, abs=1e-3)
    # a and b harm each other, and so do b and d.
    assert found.words.startswith("4 of 12 steps for one task harm another.")
    assert all(torch.equal(*pair) for pair in zip(own, before, strict=True))
    assert all(parameter.requires_grad for parameter in own)


def test_a_task_whose_own_step_gains_nothing_has_no_interference() -> None:
    model = lc.attach(tiny("llama"), "lora", tasks=["a", "b"], r=2)
    perturb(model)
    down = next(p for name, p in model.named_parameters() if name.endswith("down"))
    found = interference(model, {"a": [1.0], "b": [0.0]}, lambda _, slope: slope * down.sum())
    assert np.isnan(found.values[:, 1]).all()
    assert found.values[0, 0] == 1
    with pytest.raises(ValueError, match="one task alone"):
        interference(model, {"a": [1.0]}, lambda _, slope: slope * down.sum())


# Conflicts


def watched() -> Watched:
    """Two steps of A and B of one layer and of B of another: conflict at the second step in layer 0's B alone."""
    keys = (("layers.0.q", "down"), ("layers.0.q", "up"), ("layers.1.q", "up"))
    cosines = np.ones((2, 3, 2, 2), dtype=np.float16)
    cosines[0, 0] = np.nan
    cosines[1, 1, 0, 1] = cosines[1, 1, 1, 0] = -0.5
    cosines[1, 2, 0, 1] = cosines[1, 2, 1, 0] = -0.01
    negative = np.zeros((2, 3))
    moved = np.array([[0, 0, 0], [0, 0.25, 0.01]], dtype=np.float32)
    return Watched(np.array([1, 10]), ("a", "b"), keys, cosines, negative, np.zeros(2), moved, np.zeros(2))


def test_conflicts_are_told_by_layer_and_step() -> None:
    found = conflicts(watched())
    assert found.layers == ("layers.0.q", "layers.1.q")
    assert found.negative[:, :, 1].tolist() == [[0, 0], [1, 1]]
    assert found.strong[:, :, 1].tolist() == [[0, 0], [1, 0]]
    assert found.negative[1, 0, 0] == 0
    # A has no gradient in the first step, and the other layer's A was not watched.
    assert np.isnan(found.negative[0, 0, 0])
    assert np.isnan(found.negative[:, 1, 0]).all()
    assert found.by_layer[1].tolist() == [0.5, 1]
    assert found.summary()["negative"] == pytest.approx(2 / 5)
    assert [row[0] for row in found.rows()[1:]] == ["steps 1 to 1", "steps 10 to 10", "layers.1.q", "layers.0.q"]
    assert "no more often than by chance" in found.words


# ThanoRA and Concrete


def test_ranks_and_entropies_are_those_of_the_calibration() -> None:
    layers = {"layers.0.q": ([1, 3], [0.5, 0.75]), "layers.1.q": ([2, 2], [0.5, 0.5])}
    calibration = lc.Calibration(
        method="thanora",
        tasks=("a", "b"),
        settings={"temperature": 0.1},
        found={"ranks": {layer: ranks for layer, (ranks, _) in layers.items()}},
        base_fingerprint={},
        report={"entropies": {layer: dict(zip("ab", own, strict=True)) for layer, (_, own) in layers.items()}},
    )
    found = task_ranks(calibration)
    assert found.ranks.tolist() == [[1, 3], [2, 2]]
    assert found.differences.tolist() == [0.25, 0]
    assert found.threshold == pytest.approx(0.1 * math.log(2))
    assert "differ by 0.125: more than the 0.069" in found.words
    assert "In 1 of 2 layers" in found.words
    other = lc.Calibration(method="allot", tasks=("a",), settings={}, found={}, base_fingerprint={})
    with pytest.raises(ValueError, match="is allot's"):
        task_ranks(other)


def test_masks_are_those_of_the_report() -> None:
    found = masks({"mask_density": {"layers.0.q": 0.5, "layers.1.q": 0.2}})
    assert found.density.tolist() == [0.5, 0.2]
    assert "mean density is 0.35. In 1 of 2 layers" in found.words
    assert "The thinnest is layers.1.q, with 0.20." in found.words
    with pytest.raises(ValueError, match="Only Concrete"):
        masks({"entropy": [1.0]})
