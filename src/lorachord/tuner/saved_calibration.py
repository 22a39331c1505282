"""What was found about a base and its tasks before training: options by module and the start of factors, saved as one.

A folder holds `calibration.json` (all but tensors) and `calibration.safetensors` (the start, `<module>.<name>`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lorachord.core.registry import get_method
from lorachord.families.calibrated import Calibrated, FromInputs
from lorachord.tuner.fingerprint import check_base, fingerprint
from lorachord.tuner.peft_config import LorachordConfig
from lorachord.tuner.targets import plan
from lorachord.tuner.trained_parts import trained_in_full
from lorachord.tuner.walk import adapted_layers
from lorachord.whole import new_file, read_json, write_json

PLAIN, TENSORS = "calibration.json", "calibration.safetensors"
TARGETS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "task_type")


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What `lorachord.calibrate` returns and `lorachord.attach` takes.

    Attributes:
        method: the method that it is for.
        tasks: their names, in order.
        settings: the method's options and the targets that it was made with; `attach` takes them over.
        found: what was found, `{option: {module: value}}`.
        start: what factors start from, `{module: {name: tensor}}`.
        base_fingerprint: what it was made on.
        report: what there is to know beside that (samples, entropies, ...), plain data.
    """

    method: str
    tasks: tuple[str, ...]
    settings: dict[str, Any]
    found: dict[str, dict[str, Any]]
    base_fingerprint: dict[str, Any]
    report: dict[str, Any] = field(default_factory=dict)
    start: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def complete(
        self, method: str, tasks: Sequence[str] | None, settings: Mapping[str, Any]
    ) -> tuple[Sequence[str], dict[str, Any]]:
        """The tasks and settings of an adapter made from it, where some of them are given.

        Raises:
            ValueError: it was made for another method, other tasks, or with other values of what it depends on.
        """
        if method != self.method:
            raise ValueError(f"The calibration is for {self.method}, not for {method}: calibrate {method}.")
        if tasks is not None and tuple(tasks) != self.tasks:
            raise ValueError(
                f"The calibration is for the tasks {', '.join(self.tasks)}, in this order, not for {', '.join(tasks)}: "
                "calibrate again."
            )
        cls = get_method(method)
        assert issubclass(cls, Calibrated)
        for key in settings.keys() & {*self.found, *cls.decisive, *TARGETS}:
            value, ours = plain(settings[key]), self.settings.get(key)
            if value != ours:
                raise ValueError(f"The calibration was made with {key} = {ours!r}, not {value!r}: calibrate again.")
        return self.tasks, {**self.settings, **settings, **self.found}

    def check_base(self, base: nn.Module, config: LorachordConfig) -> None:
        """Raise a ValueError unless it was made on `base`."""
        layers = plan(base, config)
        check_base(self.base_fingerprint, fingerprint(base, layers, trained_in_full(base, config)), "The calibration")

    def begin(self, model: PeftModel, adapter_name: str) -> None:
        """Give the layers of a new adapter their start."""
        for layer in adapted_layers(model):
            adapter = layer.lorachord_adapter[adapter_name]
            if isinstance(adapter, FromInputs) and adapter.layer.name in self.start:
                adapter.begin(self.start[adapter.layer.name])

    def save(self, folder: str | Path) -> None:
        """Write the two files into a folder, which is made if needed."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"{module}.{name}": value.cpu().contiguous()
            for module, start in self.start.items()
            for name, value in start.items()
        }
        with new_file(folder / TENSORS) as scratch:
            save_file(tensors, scratch)
        tree = {key: value for key, value in vars(self).items() if key != "start"}
        write_json(folder / PLAIN, tree)

    @classmethod
    def load(cls, folder: str | Path) -> Calibration:
        """Read a folder that `save` has written.

        Raises:
            ValueError: there is none.
        """
        folder = Path(folder)
        for name in (PLAIN, TENSORS):
            if not (folder / name).is_file():
                raise ValueError(f"{folder} holds no calibration, which would be {PLAIN} and {TENSORS}.")
        start: dict[str, dict[str, Tensor]] = {}
        for key, value in load_file(folder / TENSORS).items():
            module, _, name = key.rpartition(".")
            start.setdefault(module, {})[name] = value
        tree = read_json(folder / PLAIN, ("tasks",))
        return cls(**{**tree, "tasks": tuple(tree["tasks"])}, start=start)


def require_none(config: LorachordConfig) -> None:
    """Raise a ValueError if an adapter of this config is made from a calibration."""
    method = get_method(config.method)
    if issubclass(method, Calibrated) and method.needs_calibration(config.method_config):
        without = ", ".join(f"{name}={value!r}" for name, value in method.uncalibrated.items())
        raise ValueError(
            f"{config.method} is fitted to its tasks first: attach it with calibration=lorachord.calibrate(base, "
            f"{config.method!r}, tasks=..., batches={{task: [inputs, ...]}}), or with {without}, which needs none."
        )


def plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return list(value) if isinstance(value, tuple) else value
