"""Methods that are fitted to their tasks before they are trained: what a calibration finds becomes options and a start.

Shapes: D inputs and O outputs of a layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from lorachord.core.adapter import Adapter
from lorachord.core.config import LayerSpec, MethodConfig
from lorachord.families.covariance import Covariance


class Calibrated(Adapter, ABC):
    """An adapter that `attach` makes from a calibration alone.

    Attributes:
        uncalibrated: the options with which it needs none.
        decisive: the options that decide what a calibration finds.
    """

    uncalibrated: ClassVar[Mapping[str, Any]]
    decisive: ClassVar[tuple[str, ...]]

    @classmethod
    def needs_calibration(cls, config: MethodConfig) -> bool:
        """Whether a config has something to be found."""
        return any(getattr(config, name) != value for name, value in cls.uncalibrated.items())


class FromInputs(Calibrated, ABC):
    """Fitted to the inputs of its layers."""

    @classmethod
    def check(cls, config: MethodConfig, layer: LayerSpec, num_tasks: int) -> None:
        """Refuse what does not fit a layer, before anything is measured; by default nothing is refused.

        Args:
            config: of this layer.
            layer: where the adapter will sit.
            num_tasks: T.

        Raises:
            ValueError: the options do not fit the layer.
        """

    @abstractmethod
    def begin(self, start: Mapping[str, Tensor]) -> None:
        """Take the start that was found for this layer; the update is still zero."""

    @classmethod
    @abstractmethod
    def from_inputs(
        cls, config: MethodConfig, weight_OD: Tensor, inputs: Sequence[Covariance]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The options of one layer by name, and its start, as `begin` takes it.

        Args:
            config: of this layer.
            weight_OD: W0, in at least float32.
            inputs: the covariance of the layer's inputs for each task.

        Raises:
            ValueError: the options do not fit the layer.
        """


class FromConflict(Calibrated, ABC):
    """Fitted to where the tasks' gradients conflict in a warm-up of plain LoRA."""

    @classmethod
    @abstractmethod
    def from_conflict(
        cls, config: MethodConfig, conflict: Mapping[LayerSpec, float], num_tasks: int
    ) -> dict[str, dict[str, Any]]:
        """Options by name and module.

        Args:
            config: with `warmup_steps`, `warmup_learning_rate` and `level`.
            conflict: of each module, how significant its worst conflict is (a t statistic); 0 where none is.
            num_tasks: T.
        """
