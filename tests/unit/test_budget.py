"""Published parameter counts, on LLaMA2-7B's shapes, on the meta device."""

import pytest

import lorachord as lc
from tests.tiny_models import tiny

D, FFN, BLOCKS = 4096, 11008, 32


def llama2_7b(*names: str) -> list[lc.LayerSpec]:
    sizes = {"gate_proj": (D, FFN), "up_proj": (D, FFN), "down_proj": (FFN, D)}
    return [
        lc.LayerSpec(f"layers.{block}.{name}", block, BLOCKS, *sizes.get(name, (D, D)))
        for block in range(BLOCKS)
        for name in names
    ]


def test_mosld_has_the_published_count_which_the_paper_prints_100_times_too_large() -> None:
    count = lc.count_parameters("mosld", llama2_7b("q_proj", "v_proj"), options={"num_experts": 5})
    assert count.total == 13_893_632
    assert count.routers == 64 * 5 * D
    assert count.cores == 0
    # 2, 4, 6, 8 experts over the quarters are 5 on average.
    assert lc.count_parameters("mosld", llama2_7b("q_proj", "v_proj")).total == 13_893_632


def test_mtl_lora_has_the_published_count() -> None:
    layers = llama2_7b("q_proj", "k_proj", "v_proj", "o_proj")
    count = lc.count_parameters("mtl_lora", layers, num_tasks=8)
    assert count.total == 16_845_824
    assert count.cores == 128 * (8 * 64 + 8 * 3)


LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize(
    ("names", "factors", "with_routers"), [(LINEARS[:4], 0.437, 0.411), (LINEARS, 0.398, 0.377)], ids=["qkvo", "all"]
)
def test_malora_saves_what_it_says_against_the_matching_mixture(
    names: tuple[str, ...], factors: float, with_routers: float
) -> None:
    ours, mixture = (lc.count_parameters(method, llama2_7b(*names)) for method in ("malora", "moelora"))
    assert ours.routers == mixture.routers
    assert 1 - (ours.factors + ours.cores) / mixture.factors == pytest.approx(factors, abs=5e-4)
    assert 1 - ours.total / mixture.total == pytest.approx(with_routers, abs=5e-4)
    wider = lc.count_parameters("malora", llama2_7b(*names), options={"expert_rank": 16})
    assert wider.total > mixture.total


def test_mode_has_a_router_for_each_block_of_rank_slots() -> None:
    layers, (m, r, p) = llama2_7b("q_proj", "down_proj"), (6, 4, 2)
    count = lc.count_parameters("mode", layers, options={"num_experts": m, "r": r, "block": p})
    assert count.factors == BLOCKS * (r * (D + FFN) + m * r * (D + D))
    assert count.routers == BLOCKS * m * (r // p) * (D + FFN)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        *((method, {}) for method in ("lora", "multilora", "mtl_lora", "hydralora", "mosld", "mode", "moelora")),
        ("malora", {"expert_rank": 4}),
    ],
)
def test_the_rank_found_is_the_nearest(method: str, options: dict[str, int]) -> None:
    layers = llama2_7b("q_proj", "down_proj")
    fit = lc.fit_rank(method, layers, 25_000_000, num_tasks=4, options=options)
    for other in (fit.r - 1, fit.r + 1):
        count = lc.count_parameters(method, layers, num_tasks=4, options={**options, "r": other})
        assert abs(count.total - 25_000_000) >= abs(fit.count.total - 25_000_000)
    assert fit.error == fit.count.total / 25_000_000 - 1


def test_a_rank_that_fits_exactly_is_found() -> None:
    layers = llama2_7b("q_proj")
    fit = lc.fit_rank("lora", layers, lc.count_parameters("lora", layers, options={"r": 12}).total)
    assert (fit.r, fit.error) == (12, 0)


def test_a_rank_goes_with_the_other_options() -> None:
    layers = llama2_7b("q_proj")
    for target in (5_000_000, 10_000_000, 10**12):
        fit = lc.fit_rank("mode", layers, target, options={"block": 4})
        assert fit.r % 4 == 0
        assert 4 <= fit.r <= D


@pytest.mark.parametrize("name", ["peft_lora", "peft_dora"])
def test_the_baselines_of_peft_are_counted(name: str) -> None:
    base = tiny("llama")
    layers = lc.target_layers(base)
    target = lc.count_parameters("lora", layers, options={"r": 5}).total
    fit = lc.fit_rank(name, layers, target)
    model = lc.attach(base, name, r=fit.r)
    assert fit.count.total == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert abs(fit.error) < 0.1


def test_a_budget_that_the_routers_alone_exceed_is_refused() -> None:
    with pytest.raises(ValueError, match=r"hydralora has .* at rank 1 \(.* in routers"):
        lc.fit_rank("hydralora", llama2_7b("q_proj"), 100_000, options={"num_experts": 8})


def test_counts_match_a_real_model() -> None:
    base = tiny("llama")
    layers = lc.target_layers(base, target_modules=["q_proj", "down_proj"])
    count = lc.count_parameters("mtl_lora", layers, num_tasks=2, options={"r": 4})
    model = lc.attach(base, "mtl_lora", tasks=["a", "b"], r=4, target_modules=["q_proj", "down_proj"])
    assert count.total == sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def test_a_classification_head_is_no_target() -> None:
    assert {layer.name.rpartition(".")[2] for layer in lc.target_layers(tiny("bert"))} == {
        "query",
        "key",
        "value",
        "dense",
    }
