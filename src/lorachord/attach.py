"""The front door: a model and the name of a method in, a PeftModel out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from lorachord.baselines import BASELINES, baseline_config
from lorachord.core.registry import all_methods
from lorachord.core.tasks import TaskNames
from lorachord.messages import suggest
from lorachord.tuner.peft_config import LorachordConfig
from lorachord.tuner.saved_calibration import Calibration, require_none
from lorachord.tuner.targets import infer_task_type
from lorachord.tuner.trained_parts import add_parts


def attach(
    base: nn.Module,
    method: str,
    *,
    tasks: Sequence[str] | None = None,
    adapter_name: str = "default",
    calibration: Calibration | None = None,
    **settings: Any,
) -> PeftModel:
    """Freeze a model and put an adapter on it.

    Args:
        base: the model; it is changed in place, as by `peft.get_peft_model`.
        method: name of a method (`lorachord methods` lists them), or of a baseline, `peft_lora` or `peft_dora`.
        tasks: ordered, unique task names; needed by methods with per-task parameters.
        adapter_name: PEFT's name for the adapter. Default `default`.
        calibration: from `lorachord.calibrate`, for methods that are fitted to their tasks first; it brings its tasks
            and settings with it.
        settings: the method's options (`r=8`, `alpha=16`, `dropout=0.0`, ...) and the fields of `LorachordConfig`
            (`target_modules`, `modules_to_save`, `layers_to_transform`, `align`, ...). `target_modules` is
            `all-linear` unless given. `task_type` is taken from the class of `base` where that is unambiguous; for a
            ForSequenceClassification model that makes its head trainable and saves it with the adapter. So are parts
            that the checkpoint of `base` lacks, such as a pooler: they join `modules_to_save`.

    Returns:
        A `peft.PeftModel`; only the adapter (and the heads) are trainable.

    Raises:
        ValueError: an unknown method or option (the nearest is named), values out of range, targets that match
            nothing, missing or repeated task names, a model that has adapters already, a checkpoint that lacks weights
            of the blocks, or a calibration that is missing or was made for something else. The model is then as it was.
    """
    if method not in all_methods() and method not in BASELINES:
        raise ValueError(f"There is no method {method!r}. {suggest(method, [*all_methods(), *BASELINES])}")
    if isinstance(base, PeftModel) or any(isinstance(module, BaseTunerLayer) for module in base.modules()):
        raise ValueError(
            "The model has adapters already. Add another with model.add_adapter(name, LorachordConfig.build(...)), or "
            "take the plain model back first: model.unload() of a PeftModel, or load the base anew."
        )
    if calibration is not None:
        tasks, settings = calibration.complete(method, tasks, settings)
    if "task_type" not in settings:
        settings["task_type"] = infer_task_type(base)
    config: PeftConfig
    if method in BASELINES:
        TaskNames(tuple(tasks or ()))
        config = baseline_config(method, **settings)
        add_parts(base, config)
    else:
        config = LorachordConfig.build(method, tasks=tasks, **settings)
        if calibration is None:
            require_none(config)
        else:
            calibration.check_base(base, config)
    model = get_peft_model(base, config, adapter_name=adapter_name)
    assert isinstance(model, PeftModel)
    if calibration is not None:
        calibration.begin(model, adapter_name)
    return model
