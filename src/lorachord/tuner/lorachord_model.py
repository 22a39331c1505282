"""The tuner: puts adapters into a model, the way PEFT's own tuners do."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import get_quantization_kwargs
from torch import Tensor, nn

from lorachord.core.config import LayerSpec
from lorachord.core.registry import get_method
from lorachord.families.by_prompt import PromptLevel
from lorachord.messages import suggest
from lorachord.tuner.adapter_files import check_tensors
from lorachord.tuner.fingerprint import check_base, fingerprint
from lorachord.tuner.layer import LorachordLinear
from lorachord.tuner.passes import install, refuse_adapter_names, uninstall
from lorachord.tuner.patterns import check_matches
from lorachord.tuner.peft_config import LorachordConfig
from lorachord.tuner.state import SharedState
from lorachord.tuner.targets import plan
from lorachord.tuner.trained_parts import check_tokens, trained_in_full
from lorachord.tuner.walk import adapted_layers, states_of

CONTAINER = "lorachord_adapter"


class LorachordModel(BaseTuner):
    """What `peft.get_peft_model` wraps a model in, for a `LorachordConfig`."""

    prefix = "lorachord_"
    tuner_layer_cls = LorachordLinear
    target_module_mapping: dict[str, list[str]] = {}

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Check the config against the model, and then put the adapter in.

        Raises:
            ValueError: targets that match nothing or cannot be adapted, a base other than the saved adapter's, or
                weights that hold a merged adapter. The model is then as it was.
        """
        config = self.peft_config[adapter_name]
        assert isinstance(config, LorachordConfig)
        _require_unmerged(model)
        _check_prompts(model, config)
        layers = plan(model, config)
        names = {layer.name for layer in layers}
        for module in sorted(config.method_config.modules - names):
            raise ValueError(f"The options name {module!r}, which is no adapted module. {suggest(module, names)}")
        check_matches(config.patterns, names)
        check_tokens(model, config.trainable_token_indices)
        found = fingerprint(model, layers, trained_in_full(model, config))
        if config.base_fingerprint is None:
            config.base_fingerprint = found
        else:
            check_base(config.base_fingerprint, found)

        self._layers: dict[str, LayerSpec] = {layer.name: layer for layer in layers}
        self._shared = next((layer.shared for layer in adapted_layers(model)), None) or SharedState()
        super().inject_adapter(model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage, state_dict)
        install(model, self._shared, adapter_name, config)

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        assert isinstance(peft_config, LorachordConfig)
        if current_key not in self._layers:
            raise ValueError(f"The saved adapter has weights for {current_key!r}. {suggest(current_key, self._layers)}")
        method = get_method(peft_config.method)
        layer = self._layers[current_key]
        adapter = method(layer, peft_config.options_of(layer), peft_config.task_names)
        if isinstance(target, LorachordLinear):
            target.update_layer(adapter_name, adapter)
            return
        made = LorachordLinear(target, self._shared, adapter_name, **get_quantization_kwargs(self))
        made.update_layer(adapter_name, adapter)
        if adapter_name not in self.active_adapters:
            made.requires_grad_(False)
        self._replace_module(parent, target_name, made, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(new_module, LorachordLinear):
            super()._replace_module(parent, child_name, new_module, child)
        else:
            # Unloading: PEFT's own also assigns a `weight`, which a head of several layers does not have.
            setattr(parent, child_name, new_module)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter; its tasks are forgotten with it."""
        super().delete_adapter(adapter_name)
        for shared in states_of(self.model):
            shared.forget(adapter_name)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """As in PEFT.

        Raises:
            ValueError: there is no adapter of such a name.
        """
        self._require_known([adapter_name] if isinstance(adapter_name, str) else adapter_name)
        super().set_adapter(adapter_name, inference_mode)

    def _require_known(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self.peft_config:
                raise ValueError(f"There is no adapter {name!r}. {suggest(name, self.peft_config)}")

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        # PEFT calls it around a pass, with what that pass is given.
        refuse_adapter_names(kwargs)
        yield

    def _check_merge_allowed(self) -> None:
        """PEFT's check knows no adapter names; `check_merge`, which does, has been called before."""

    def check_merge(self, adapter_names: list[str] | None = None) -> None:
        """Raise a ValueError, before any weight has changed, if the named (the active) adapters cannot be merged."""
        self._require_known(adapter_names or [])
        for layer in adapted_layers(self.model):
            layer.check_merged()
            layer.require_readable()
            for name in layer.active_adapters if adapter_names is None else adapter_names:
                if name in layer.lorachord_adapter:
                    layer.require_matrix(name)
        tied = tied_targets(self.model)
        if tied:
            raise ValueError(
                f"{', '.join(tied)} shares its weight with another layer, which merging would change as well. Untie "
                "them first: lorachord.merge(model, untie=True), or load the base with tie_word_embeddings=False."
            )

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """As in PEFT, with `check_merge` first."""
        self.check_merge(adapter_names)
        super().merge_adapter(adapter_names, safe_merge)

    def _unload_and_optionally_merge(  # type: ignore[override]
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        if merge:
            self.check_merge(adapter_names)
        model: nn.Module = super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)  # type: ignore[assignment]
        uninstall(model)
        return model

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # PEFT's own looks for the name at the end of the key, and so misses parameters of nested modules (a router's).
        name = re.escape(adapter_name)
        return re.sub(rf"(^|\.){CONTAINER}\.{name}(?=\.)", rf"\1{CONTAINER}", key)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Besides the renaming: a ValueError, before any is loaded, for damaged tensors and reordered tasks."""
        assert isinstance(config, LorachordConfig)
        _require_unmerged(model)
        renamed: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        expected = {
            f"{path}.{CONTAINER}.{adapter_name}.{key}": value
            for path, layer in model.named_modules()
            if isinstance(layer, LorachordLinear) and adapter_name in layer.lorachord_adapter
            for key, value in layer.lorachord_adapter[adapter_name].state_dict().items()
        }
        missing = sorted(expected.keys() - renamed.keys())
        if missing:
            raise ValueError(
                f"The saved adapter is incomplete: {len(missing)} of {len(expected)} tensors are missing, among them "
                f"{missing[0]}."
            )
        for key, value in renamed.items():
            if key.endswith(".task_digest"):
                config.task_names.check_digest(value)
        check_tensors(renamed, expected)
        return renamed


def _require_unmerged(model: nn.Module) -> None:
    merged = {name for layer in adapted_layers(model) for name in layer.merged_adapters}
    if merged:
        raise ValueError(
            f"The weights hold the adapter {', '.join(sorted(merged))}, merged: call unmerge_adapter() before another "
            "is added or loaded."
        )


def _check_prompts(model: nn.Module, config: LorachordConfig) -> None:
    seq2seq = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    if seq2seq and issubclass(get_method(config.method), PromptLevel):
        raise ValueError(
            f"{config.method} chooses by the prompt, which the decoder of {type(model).__name__} does not read: "
            "take a decoder-only model or an encoder, or another method."
        )


def tied_targets(model: nn.Module) -> list[str]:
    """The adapted layers whose base weight is also another layer's."""
    owners: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return [
        path
        for path, layer in model.named_modules()
        if isinstance(layer, LorachordLinear)
        and isinstance(layer.get_base_layer().weight, torch.nn.Parameter)
        and owners.get(id(layer.get_base_layer().weight), 0) > 1
    ]
