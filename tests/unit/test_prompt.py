"""What prompt-level methods read off a prompt is precise under autocast too."""

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
    mean, router = torch.randn(3, 16, generator=generator), torch.randn(8, 16, generator=generator)
    pairs = torch.softmax(torch.randn(4, 2, 4, generator=generator), dim=-1)
    weights = torch.cat([router.flatten(), pairs.flatten()]).unsqueeze(0)
    expected = choose_pairs(mean, weights, 4, 2, scored=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(choose_pairs(mean, weights, 4, 2, scored=True), expected)


def test_gradients_of_a_choice_are_finite_where_probabilities_are_zero() -> None:
    # Three pairs are to be chosen, of factors of which only two have any probability.
    mean = torch.eye(2, 4, requires_grad=True)
    router = torch.zeros(8, 4)
    router[[2, 3, 6, 7]] = -1000.0
    pairs = torch.eye(4).unsqueeze(1).expand(-1, 3, -1)
    weights = torch.cat([router.flatten(), pairs.flatten()]).unsqueeze(0).requires_grad_()
    matrix = choose_pairs(mean, weights, 4, 3, scored=True)
    matrix.mul(torch.arange(16.0).view(4, 4)).sum().backward()
    assert mean.grad is not None
    assert weights.grad is not None
    assert mean.grad.isfinite().all()
    assert weights.grad.isfinite().all()
    assert weights.grad.any()
