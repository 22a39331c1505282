"""A model that was finely tuned as a whole, read from its folder one tensor at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorachord.tuner.layer import linear_features
from lorachord.tuner.trained_parts import HEAD_NAMES, inside, lacking


@dataclass(frozen=True)
class Checkpoint:
    """Differences to the base of one checkpoint.

    Attributes:
        task: whose it is.
        files: the file of each tensor.
        parameters: the base's, by name.
        linears: names of layers whose weights are fused as such; the true ones are stored transposed (GPT-2's).
        others: names of the other parameters.
        heads: names of the tensors of the head, and of the parts that the base's checkpoint lacks.
    """

    task: str
    files: dict[str, Path]
    parameters: dict[str, Tensor]
    linears: dict[str, bool]
    others: tuple[str, ...]
    heads: tuple[str, ...]

    @classmethod
    def open(cls, task: str, base: nn.Module, folder: Path) -> Checkpoint:
        """Look at the folder of a saved model.

        Raises:
            ValueError: no safetensors, or parameters with other names or shapes than the base's.
        """
        files, shapes = {}, {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - no mapping
                    files[name] = path
                    shapes[name] = tuple(file.get_slice(name).get_shape())
        if not files:
            raise ValueError(f"{task}: {folder} has no safetensors; save the model with save_pretrained.")
        own = (*HEAD_NAMES, *lacking(base))
        parameters = {name: parameter.detach() for name, parameter in base.named_parameters() if not inside(name, own)}
        for name, parameter in parameters.items():
            if shapes.get(name) != tuple(parameter.shape):
                found = f"has the shape {shapes[name]}" if name in shapes else "is missing"
                raise ValueError(
                    f"{task}: {folder} was not tuned from this base: {name} {found}, and the base has "
                    f"{tuple(parameter.shape)}."
                )
        linears = {
            name: isinstance(module, Conv1D)
            for name, module in base.named_modules()
            if linear_features(module) is not None and f"{name}.weight" in parameters
        }
        others = tuple(name for name in parameters if name.removesuffix(".weight") not in linears)
        heads = tuple(name for name in files if inside(name, own))
        return cls(task, files, parameters, linears, others, heads)

    def __contains__(self, layer: str) -> bool:
        """Whether this is a linear layer of the checkpoint."""
        return layer in self.linears

    def delta(self, name: str) -> Tensor:
        """The difference of a linear layer's weight (O, D), by the layer's name, or of another parameter, float32."""
        parameter = f"{name}.weight" if name in self.linears else name
        base = self.parameters[parameter]
        with safe_open(self.files[parameter], framework="pt") as file:
            difference: Tensor = file.get_tensor(parameter).to(base.device).float() - base.float()
        return difference.t() if self.linears.get(name, False) else difference

    def head(self) -> dict[str, Tensor]:
        """The tensors of its classifier, and of the parts that the base lacks, by name; empty where it has none."""
        state = {}
        for name in self.heads:
            with safe_open(self.files[name], framework="pt") as file:
                state[name] = file.get_tensor(name)
        return state
