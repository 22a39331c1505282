"""What prompt-level methods read off a prompt, and the choice they make of it."""

import pytest
import torch

import lorachord as lc
from lorachord.core.pairs import choose_pairs
from lorachord.methods.mixlora import MixLoRA


def test_the_mean_over_a_prompt_is_in_float32_under_autocast() -> None:
    adapter = MixLoRA(lc.LayerSpec("layer", 0, 1, 16, 16), MixLoRA.Config(r=2, num_experts=4))
    x = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        _, mean = adapter.prompt_mean(x, lc.Context(prompt_mask_BL=torch.ones(2, 9, dtype=torch.bool)))
    torch.testing.assert_close(mean, x.float().mean(1), rtol=1e-5, atol=1e-6)


def test_pairs_are_chosen_in_the_means_precision_under_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    # The mean, W_A and W_B, the W_i of two places, and the pool.
    given = [torch.randn(rows, 16, generator=generator) for rows in (3, 8, 8, 4)]
    expected = choose_pairs(given[0], *([weight] for weight in given[1:]), None, scored=True)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(choose_pairs(given[0], *([weight] for weight in given[1:]), None, scored=True)[0], expected)


def test_gradients_of_a_choice_are_finite_where_probabilities_are_zero() -> None:
    # Three pairs are to be chosen, of factors of which only two have any probability; every pair's is 0 or 1.
    mean, pool = torch.eye(2, 4), torch.eye(4)
    router = torch.zeros(8, 4)
    router[[2, 3, 6, 7]] = -1000.0
    pairs = 1000.0 * torch.eye(4).repeat(3, 1)
    given = [tensor.requires_grad_() for tensor in (mean, router, pairs, pool)]
    matrix = choose_pairs(given[0], *([weight] for weight in given[1:]), None, scored=True)[0]
    matrix.mul(torch.arange(16.0).view(4, 4)).sum().backward()
    for tensor in given:
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
    assert router.grad is not None
    assert router.grad.any()


def test_choices_of_layers_with_the_same_input_are_each_what_they_are_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(3, 16, generator=generator, dtype=torch.float64).requires_grad_()
    # W_A and W_B, the W_i of two places, and the pool, of three layers.
    kinds = [
        [torch.randn(rows, 16, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)]
        for rows in (8, 8, 4)
    ]
    cotangents = torch.randn(3, 3, 4, 4, generator=generator, dtype=torch.float64)
    weights = [weight for kind in kinds for weight in kind]
    together = choose_pairs(mean, *kinds, None, scored=True)
    alone = [choose_pairs(mean, *([kind[layer]] for kind in kinds), None, scored=True)[0] for layer in range(3)]
    results = [
        [*found, *torch.autograd.grad((torch.stack([*found]) * cotangents).sum(), [mean, *weights])]
        for found in (together, alone)
    ]
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("selection", ["scored", "frozen_hash"])
def test_a_choice_that_does_not_learn_reads_the_prompt_without_a_graph(selection: str) -> None:
    adapter = MixLoRA(lc.LayerSpec("layer", 0, 1, 16, 16), MixLoRA.Config(r=2, num_experts=4, selection=selection))
    x = torch.randn(2, 9, 16, requires_grad=True)
    passed, mean = adapter.look(x, lc.Context())
    assert mean.requires_grad == (selection == "scored")
    assert (passed is x) == (selection == "frozen_hash")
