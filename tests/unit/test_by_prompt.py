"""What prompt-level methods read off a prompt, and the choice they make of it."""

import pytest
import torch

import lorachord as lc
from lorachord.kernels.pairs import choose_pairs
from lorachord.methods.mixlora import MixLoRA


def test_the_mean_over_a_prompt_is_in_float32_under_autocast() -> None:
    adapter = MixLoRA(lc.LayerSpec("layer", 0, 1, 16, 16), MixLoRA.Config(r=2, num_experts=4))
    x = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        mean = adapter.prompt_mean(x, lc.Context(prompt_mask_BL=torch.ones(2, 9, dtype=torch.bool)))
    torch.testing.assert_close(mean, x.float().mean(1), rtol=1e-5, atol=1e-6)


def test_pairs_are_chosen_in_the_means_precision_under_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    # The mean, W_A and W_B, the W_i of two places, and the pool.
    given = [torch.randn(rows, 16, generator=generator) for rows in (3, 8, 8, 4)]
    expected = choose_pairs(*given, None, scored=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(choose_pairs(*given, None, scored=True), expected)


def test_gradients_of_a_choice_are_finite_where_probabilities_are_zero() -> None:
    # Three pairs are to be chosen, of factors of which only two have any probability; every pair's is 0 or 1.
    mean, pool = torch.eye(2, 4), torch.eye(4)
    router = torch.zeros(8, 4)
    router[[2, 3, 6, 7]] = -1000.0
    pairs = 1000.0 * torch.eye(4).repeat(3, 1)
    given = [tensor.requires_grad_() for tensor in (mean, router, pairs, pool)]
    matrix = choose_pairs(*given, None, scored=True)
    matrix.mul(torch.arange(16.0).view(4, 4)).sum().backward()
    for tensor in given:
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
    assert router.grad is not None
    assert router.grad.any()


@pytest.mark.parametrize("selection", ["scored", "frozen_hash"])
def test_a_choice_that_does_not_learn_reads_the_prompt_without_a_graph(selection: str) -> None:
    adapter = MixLoRA(lc.LayerSpec("layer", 0, 1, 16, 16), MixLoRA.Config(r=2, num_experts=4, selection=selection))
    x = torch.randn(2, 9, 16, requires_grad=True)
    mixed = adapter.core(torch.randn(2, 9, 4), x, lc.Context())
    assert mixed.requires_grad == (selection == "scored")
