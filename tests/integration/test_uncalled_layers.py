"""An adapter on a layer that the model never calls would do nothing: such layers are refused, left out or named."""

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

import lorachord as lc
from tests.tiny_models import perturb


class Encoder(nn.Module):
    """torch's own encoder."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        return self.out(self.encoder(x, src_key_padding_mask=padding))


class Unused(nn.Module):
    """One layer is called, of one the weight is used, and one is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.called, self.fused, self.unused = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return linear(self.called(x), self.fused.weight)


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return Encoder().eval()


def test_all_linear_leaves_out_the_projection_inside_torchs_attention() -> None:
    with pytest.warns(UserWarning, match=r"leaves out 2 layers of nn.MultiheadAttention"):
        model = lc.attach(encoder(), "lora", r=2)
    perturb(model)
    model.train()(torch.randn(2, 4, 16)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)


def test_it_is_refused_where_it_is_named() -> None:
    for targets in (["out_proj"], r".*out_proj"):
        with pytest.raises(ValueError, match=r"'encoder.layers.0.self_attn.out_proj' is never called"):
            lc.attach(encoder(), "lora", r=2, target_modules=targets)


def test_torchs_encoder_computes_in_evaluation_what_it_does_in_training() -> None:
    model = lc.attach(encoder(), "lora", r=2, target_modules=["linear1", "linear2", "out"])
    perturb(model, 0.3)
    x, padding = torch.randn(2, 4, 16), torch.tensor([[False] * 4, [False, False, True, True]])
    for mask in (None, padding):
        want = model.train()(x, mask)
        model.eval()
        with torch.no_grad():
            found, merged = model(x, mask), lc.merge(model)(x, mask)
        # Padding is left as it is on one road, and as zeros on another.
        kept = slice(None) if mask is None else ~padding
        torch.testing.assert_close(found[kept], want[kept], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(merged[kept], want[kept], atol=1e-4, rtol=1e-4)
    plain = model.unload()
    assert not any(layer._forward_pre_hooks for layer in plain.modules())


def test_layers_that_the_first_pass_does_not_call_are_named_once() -> None:
    model = lc.attach(Unused(), "lora", r=2).train()
    model.eval()(torch.randn(2, 4))
    model.train()
    with pytest.warns(UserWarning, match=r"2 adapted layers were not called.*fused"):
        model(torch.randn(2, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.randn(2, 4))
        lc.attach(Unused(), "lora", r=2, target_modules=["called"]).train()(torch.randn(2, 4))


def test_a_first_pass_that_fails_is_no_first_pass() -> None:
    model = lc.attach(Unused(), "lora", r=2, target_modules=["called", "unused"]).train()
    with pytest.raises(RuntimeError):
        model(torch.randn(2, 5))
    assert not any(layer._forward_pre_hooks for layer in model.get_base_model().children())
    with pytest.warns(UserWarning, match="1 adapted layers were not called"):
        model(torch.randn(2, 4))
