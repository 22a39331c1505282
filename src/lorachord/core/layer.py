"""Where an adapter sits."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One linear layer of the base model.

    Attributes:
        name: the module's name in the base model.
        index: the transformer block that it belongs to, from 0.
        num_layers: how many blocks there are.
        d_in, d_out: features of its input and output.
    """

    name: str
    index: int
    num_layers: int
    d_in: int
    d_out: int
