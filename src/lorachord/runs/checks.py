"""Everything about a recipe that is known to be wrong without data or weights."""

from __future__ import annotations

from collections.abc import Sequence

from transformers.integrations.integration_utils import get_available_reporting_integrations

from lorachord.balance.make import check_balance
from lorachord.baselines import BASELINES, baseline_config
from lorachord.core.adapter import Adapter
from lorachord.core.registry import all_methods
from lorachord.data.metrics import WRITTEN
from lorachord.data.task import Task
from lorachord.families.by_prompt import PromptLevel
from lorachord.families.calibrated import Calibrated
from lorachord.messages import suggest
from lorachord.models.pretrained import load_tokenizer
from lorachord.models.resolve import resolve
from lorachord.runs.folder import check_names
from lorachord.runs.model import base_name
from lorachord.runs.recipe import Recipe
from lorachord.runs.starting import by_task, check_start, is_fitted, routes
from lorachord.surgery.surgeon import check_surgery
from lorachord.training.chat_rows import ChatRows
from lorachord.tuner import Calibration, LorachordConfig


def check(recipe: Recipe, tasks: Sequence[Task]) -> None:
    """Everything that can be known to be wrong without data or weights.

    Raises:
        ValueError: an unknown method or option, a task that the model cannot have, weights of unknown tasks, a missing
            or incomplete model folder.
    """
    names = [task.name for task in tasks]
    for name in recipe.tasks.weights:
        if name not in names:
            raise ValueError(f"tasks.weights names {name!r}, which is no task of this recipe. {suggest(name, names)}")
    check_names(names)
    available = get_available_reporting_integrations()
    for name in recipe.training.report_to:
        if name not in available:
            raise ValueError(f"training.report_to: {name!r} is not installed or not known. {suggest(name, available)}")
    _check_method(recipe, names)
    _check_balance(recipe, tasks)
    if recipe.mode == "sequence" and is_fitted(recipe.method["name"]) and not by_task(recipe.method["name"]):
        raise ValueError(
            f"mode sequence: {recipe.method['name']} is fitted to all tasks before training, so none can come later."
        )
    if recipe.mode == "fused" and (recipe.method["name"] == "peft_dora" or routes(recipe.method["name"])):
        raise ValueError(f"mode fused: {recipe.method['name']} is no low-rank update of the weights; take lora.")
    if recipe.start_from is not None:
        check_start(recipe, tasks)
    if recipe.model.kind == "encoder":
        written = [task.name for task in tasks if task.kind in WRITTEN]
        if written:
            raise ValueError(f"An encoder writes no text: leave out {', '.join(written)}, or take a decoder.")
        if recipe.model.heads == "shared" and len({task.num_outputs for task in tasks}) > 1:
            widths = ", ".join(f"{task.name} {task.num_outputs}" for task in tasks)
            raise ValueError(f"One shared head needs tasks of one width, and these differ: {widths}. Use per_task.")
    try:
        resolve(base_name(recipe.model), recipe.model.gguf_file)
    except (ImportError, RuntimeError) as error:
        raise ValueError(f"model: {error}") from error
    if any(task.kind == "chat" for task in tasks):
        tokenizer = load_tokenizer(base_name(recipe.model), recipe.model.gguf_file)
        tokenizer.chat_template = recipe.model.chat_template or tokenizer.chat_template
        # Without weights: whether there is a template that can be learned from.
        _ = ChatRows(tokenizer, recipe.model.max_length).end


def _check_method(recipe: Recipe, names: Sequence[str]) -> None:
    options = {key: value for key, value in recipe.method.items() if key not in ("name", "calibration")}
    method = recipe.method["name"]
    try:
        if "calibration" in recipe.method and not issubclass(all_methods().get(method, Adapter), Calibrated):
            raise ValueError(f"{method} needs no calibration; leave it out.")
        if "calibration" in recipe.method:
            Calibration.load(recipe.method["calibration"])
        for key in options.keys() & {"tasks", "method", "options", "format_version", "base_fingerprint", "centroids"}:
            raise ValueError(f"{key} is not for a recipe to say; it follows from the tasks and the model.")
        if method in BASELINES:
            baseline_config(method, **options)
        elif method in all_methods():
            if options.get("align") is not None and recipe.mixture.batches == "one_task":
                raise ValueError("align has nothing to compare in batches of one task: set mixture.batches to mixed.")
            config, cls = LorachordConfig.build(method, tasks=names, **options), all_methods()[method]
            if issubclass(cls, PromptLevel) and cls.embeds and cls.encoder(config.method_config) != "base":
                resolve(cls.encoder(config.method_config))
        else:
            raise ValueError(f"there is no method {method!r}. {suggest(method, [*all_methods(), *BASELINES])}")
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"method: {error}") from None
    if recipe.surgery is not None:
        try:
            check_surgery(**recipe.surgery)
        except (TypeError, ValueError) as error:
            raise ValueError(f"surgery: {error}") from None
        if method in BASELINES:
            raise ValueError(f"surgery: {method} hands out no gradients of tasks; take the method `lora` instead.")


def _check_balance(recipe: Recipe, tasks: Sequence[Task]) -> None:
    if recipe.balance is None:
        return
    regressions = [task.name for task in tasks if task.kind == "regression"]
    own_heads = recipe.model.kind == "encoder" and recipe.model.heads == "per_task"
    try:
        for option in recipe.balance.keys() & {"tasks", "model", "regressions", "start", "per_task_heads"}:
            raise ValueError(f"{option} is not for a recipe to say; it follows from the tasks and the model.")
        check_balance(
            tasks=[task.name for task in tasks], regressions=regressions, per_task_heads=own_heads, **recipe.balance
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"balance: {error}") from None
