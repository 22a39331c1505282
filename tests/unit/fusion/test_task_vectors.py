"""Task vectors as data: sums of them, and layers left out."""

import pytest
import torch

from tests.unit.fusion.helpers import near, toy


def test_stacked_equals_dense():
    vectors = toy()
    layer = vectors.layers["linear"]
    weights = torch.tensor([0.3, -2.0])
    expected = 0.3 * layer.delta(0) - 2 * layer.delta(1)
    assert near(layer.combine(weights).dense(), expected)


def test_protected_layers_stay_the_bases():
    vectors = toy()
    with pytest.raises(ValueError, match="nothing is left"):
        vectors.without(["linear"])
    with pytest.raises(ValueError, match=r"'liner', which no adapter changes\. Did you mean 'linear'"):
        vectors.without(["liner"])
