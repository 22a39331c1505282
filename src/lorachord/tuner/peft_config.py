"""The config that PEFT knows an adapter by, and that is saved beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from peft import PeftConfig
from peft.utils import PeftType

from lorachord.core.align import Align
from lorachord.core.config import LayerSpec, MethodConfig
from lorachord.core.context import Mixing
from lorachord.core.registry import get_method
from lorachord.core.tasks import TaskNames
from lorachord.messages import suggest
from lorachord.tuner.adapter_files import check_adapter, check_fields
from lorachord.tuner.card import write_card
from lorachord.tuner.patterns import check_patterns, followed

FORMAT_VERSION = 1
PEFT_NAME = "LORACHORD"
USUAL = (
    "tasks",
    "target_modules",
    "exclude_modules",
    "modules_to_save",
    "layers_to_transform",
    "rank_pattern",
    "align",
)
"""The fields that people set, of those that are no method's."""


@dataclass
class LorachordConfig(PeftConfig):
    """An adapter of any method, for `peft.get_peft_model`. `lorachord.attach` builds one from flat keywords.

    Args:
        method: name of the method; `lorachord methods` lists them. Default `lora`.
        tasks: ordered, unique task names. Needed by methods with per-task parameters, welcome for all.
        options: the method's own options (rank, alpha, dropout, ...), as a dict; unknown keys are errors.
        target_modules: module name suffixes, a regex, or `all-linear` (default: all linears but the output layer).
        exclude_modules: suffixes or a regex of modules to leave out.
        modules_to_save: modules to train in full and save beside the adapter (heads).
        layers_to_transform, layers_pattern: restrict `target_modules` to some blocks, as in PEFT's LoraConfig.
        rank_pattern, alpha_pattern: another r or alpha for some modules, by their names or regular expressions, as in
            PEFT's LoraConfig: `{"v_proj": 16}`. For methods with these options. Default: none.
        use_rslora: the scale is `alpha / sqrt(r)` in place of `alpha / r` (arXiv 2312.03732). Default false.
        trainable_token_indices: tokens whose embeddings are trained and saved beside the adapter, by PEFT: a list, or
            lists by the names of embedding layers. Default: none.
        align: a penalty that draws the tasks together in rank space, for methods that do not route by the input: its
            weight, or a mapping of `weight` (default 0.1) and `floor` (of variances, default 1e-6). Default: none.
        format_version: of the saved files; set by the library.
        base_fingerprint: what the adapter was trained on, to refuse another base; set by the library.
        centroids: of the training prompts' embeddings, of a method that routes by them; set by `fit_intuition`.

    Raises:
        ValueError: unknown method or option (the nearest is named), values out of range, missing or repeated tasks,
            a newer format.
    """

    method: str = "lora"
    tasks: list[str] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    target_modules: list[str] | str | None = "all-linear"
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    use_rslora: bool = False
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    align: dict[str, float] | float | None = None
    target_parameters: None = None
    format_version: int = FORMAT_VERSION
    base_fingerprint: dict[str, Any] | None = None
    centroids: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType[PEFT_NAME]
        check_fields(self)
        if self.format_version > FORMAT_VERSION:
            raise ValueError(
                f"This adapter has format {self.format_version}, and this lorachord reads up to {FORMAT_VERSION}: "
                "it was written by a newer version. Upgrade with `pip install -U lorachord`."
            )
        method = get_method(self.method)
        self.options = method.Config.from_dict(self.options).to_dict()
        check_patterns(self.patterns, self.use_rslora, self.method_config, self.method)
        if isinstance(self.tasks, str):
            raise ValueError(f"tasks must be a list of names, not the string {self.tasks!r}.")
        self.tasks = None if self.tasks is None else list(self.tasks)
        if method.mixing is Mixing.TASK and not self.tasks:
            raise ValueError(f"{self.method} has parameters for each task: name them, as in tasks=['cola', 'sst2'].")
        _ = self.task_names
        self._settle_align()
        # PEFT matches sets; lists come from JSON and from users.
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if isinstance(value, (list, tuple)):
                setattr(self, name, set(value))

    def _settle_align(self) -> None:
        if self.align is None:
            return
        given = self.align if isinstance(self.align, Mapping) else {"weight": self.align}
        self.align = Align.from_dict(given).to_dict()
        if get_method(self.method).mixing is Mixing.INPUT:
            raise ValueError(
                f"align compares the tasks of one pair of factors, and {self.method} routes by its input: leave it "
                "out, or take `lora` or another method that does not (see `lorachord methods`)."
            )
        if not self.tasks:
            raise ValueError("align compares tasks: name them, as in tasks=['cola', 'sst2'].")

    @property
    def alignment(self) -> Align | None:
        """The settings of the penalty `align`; None where there is none."""
        settings = None if self.align is None else Align.from_dict(self.align)  # type: ignore[arg-type]
        return settings if settings is not None and settings.weight else None

    @property
    def task_names(self) -> TaskNames:
        """The tasks in the order of the stacked parameters."""
        accepts_unknown = get_method(self.method).accepts_unknown_tasks(self.method_config)
        return TaskNames(tuple(self.tasks or ()), accepts_unknown=accepts_unknown)

    @property
    def method_config(self) -> MethodConfig:
        """The method's own config."""
        return get_method(self.method).Config.from_dict(self.options)

    @property
    def patterns(self) -> dict[str, Any]:
        """What names modules with options of their own, by the names of the fields."""
        return {"rank_pattern": self.rank_pattern, "alpha_pattern": self.alpha_pattern}

    def options_of(self, layer: LayerSpec) -> MethodConfig:
        """The method's options for one layer, as its adapter gets them."""
        return followed(self.method_config.at(layer), self.patterns, self.use_rslora, layer.name)

    @classmethod
    def build(cls, method: str, **keywords: Any) -> LorachordConfig:
        """From flat keywords: fields of this class and options of the method, side by side.

        Raises:
            ValueError: a keyword that is neither; the nearest is named.
        """
        own = {spec.name for spec in fields(cls) if spec.init} - {"method", "options"}
        known = {spec.name for spec in fields(get_method(method).Config)}
        for key in keywords:
            if key not in own | known:
                raise ValueError(f"{method} has no option {key!r}. {suggest(key, known.union(USUAL))}")
        options = {key: value for key, value in keywords.items() if key in known}
        return cls(method=method, options=options, **{key: keywords[key] for key in keywords.keys() & own})

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> LorachordConfig:
        """Load a saved config; a local folder is checked for whole weights before anything is built.

        Raises:
            ValueError: the folder has no weights, or a truncated file.
        """
        folder = Path(pretrained_model_name_or_path, subfolder or "")
        if folder.is_dir():
            check_adapter(folder)
        config: LorachordConfig = super().from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)
        return config

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Save the config, with sorted lists in place of sets and the model card beside it."""
        super().save_pretrained(save_directory, **kwargs)
        write_card(Path(save_directory), self, self.method, self.tasks or (), self.options)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        plain: dict[str, Any] = super().to_dict()
        return {key: sorted(value) if isinstance(value, set) else value for key, value in plain.items()}
