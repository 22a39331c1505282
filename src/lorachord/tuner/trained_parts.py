"""Parts of a model that are trained in full: its head, what its checkpoint lacks, and what a config names besides.

A checkpoint may lack a pooler, or a head: they are drawn at random when the model is loaded. The base cannot bring them
back, so they are trained and saved with the adapter. transformers marks each weight that it has read from a file; the
marks do not outlive a copy of the model, and a model that was made from a config has none.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence

from peft import LoraConfig
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from lorachord.messages import suggest
from lorachord.tuner.peft_config import LorachordConfig

HEAD_NAMES = ("classifier", "score", "logits_proj", "classification_head")
"""The heads of transformers' sequence classifiers."""
READ = "_is_hf_initialized"
"""transformers' mark on a weight that was read, and on a module whose other weights it has drawn."""
OF_TASK_TYPE = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
"""The names that PEFT adds to `modules_to_save` by itself."""


def trained_in_full(model: nn.Module, config: LorachordConfig | LoraConfig) -> tuple[str, ...]:
    """The modules that PEFT trains in full for a config: all whose names end with one that it is given."""
    given = (*(config.modules_to_save or ()), *OF_TASK_TYPE.get(config.task_type or "", ()))
    return tuple(name for name, _ in model.named_modules() if name and name.endswith(given)) if given else ()


def inside(name: str, parts: tuple[str, ...]) -> bool:
    """Whether a module is one of some parts, or within one."""
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def check_tokens(model: nn.Module, chosen: Sequence[int] | Mapping[str, Sequence[int]] | None) -> None:
    """Whether a model has the tokens whose embeddings are trained.

    Args:
        chosen: `trainable_token_indices`.

    Raises:
        ValueError: a name that is no embedding's, or a token that there is not; the embedding is named.
    """
    tables = {name: module for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    if isinstance(chosen, Mapping):
        lists = dict(chosen)
    else:
        own = [name for name, module in tables.items() if chosen and module is model.get_input_embeddings()]  # type: ignore[operator]
        lists = dict.fromkeys(own, chosen or ())
    for key, indices in lists.items():
        sizes = [table.num_embeddings for name, table in tables.items() if f".{name}".endswith(f".{key}")]
        if not sizes:
            raise ValueError(f"trainable_token_indices names {key!r}, which is no embedding. {suggest(key, tables)}")
        if max(indices, default=-1) >= min(sizes):
            raise ValueError(f"trainable_token_indices names token {max(indices)}, and {key} has {min(sizes)} tokens.")


def add_parts(model: nn.Module, config: LorachordConfig | LoraConfig) -> None:
    """Put what the base cannot bring back into a new adapter's `modules_to_save`.

    Raises:
        ValueError: the checkpoint lacks weights of numbered blocks, which are no parts beside an adapter.
    """
    parts = trained_in_full(model, config)
    heads = [name for name, _ in model.named_children() if name in HEAD_NAMES and config.task_type == "SEQ_CLS"]
    new = [name for name in dict.fromkeys((*heads, *lacking(model))) if not inside(name, parts)]
    broken = [name for name in new if _has_blocks(model, name)]
    if broken:
        raise ValueError(
            f"The checkpoint of the base lacks weights of {', '.join(broken[:3])}{' ...' if broken[3:] else ''}: they "
            "were drawn at random. Load a checkpoint that has them."
        )
    # PEFT wraps what ends like a name, but keeps adapters only from what has the name: `pre_classifier` is both.
    given = [*(config.modules_to_save or ()), *OF_TASK_TYPE.get(config.task_type or "", ())]
    alike = [name for name in parts if not any(f".{name}".endswith(f".{one}") for one in given)]
    if alike or new:
        found = [one for name in new for one in _unmistakable(model, name)]
        config.modules_to_save = [*(config.modules_to_save or ()), *alike, *found]


def warn_of_lost_parts(model: nn.Module, config: LorachordConfig | LoraConfig) -> None:
    """Warn if the base lacks parts that a saved adapter does not hold.

    Warns:
        UserWarning: which.
    """
    parts = trained_in_full(model, config)
    lost = [name for name in lacking(model) if not inside(name, parts)]
    if lost:
        warnings.warn(
            f"The checkpoint of the base lacks weights of {', '.join(lost)}, and the adapter was saved without them: "
            "they are drawn at random here, and the outputs are not those of training. Train the adapter again.",
            stacklevel=2,
        )


def lacking(model: nn.Module) -> list[str]:
    """The names of the largest modules of which a checkpoint has held nothing, and of layers of which it lacks some.

    The output layer of a language model is left out where the vocabulary has grown: transformers makes it anew then,
    and PEFT saves it.
    """
    if not isinstance(model, PreTrainedModel):
        return []
    weights = (parameter for _, module in own_modules(model) for parameter in module.parameters(recurse=False))
    if not any(_is_read(parameter) for parameter in weights):
        return []
    output = None if _has_its_vocabulary(model) else model.get_output_embeddings()
    known, absent = set[str](), list[str]()
    for name, module in own_modules(model):
        drawn = READ in vars(module) and module is not output
        for parameter in module.parameters(recurse=False):
            if name and drawn and not _is_read(parameter) and type(parameter) is nn.Parameter and not parameter.is_meta:
                absent.append(name)
            else:
                known.update(_upwards(name))
    largest = [next((whole for whole in reversed(_upwards(name)) if whole not in known), name) for name in absent]
    found = dict.fromkeys(largest)
    return [name for name in found if not any(name.startswith(f"{other}.") for other in found)]


def _has_its_vocabulary(model: PreTrainedModel) -> bool:
    """Whether a model's output layer has as many words as its checkpoint's config; false where that is not known."""
    output = model.get_output_embeddings()
    try:
        saved, _ = PretrainedConfig.get_config_dict(model.name_or_path or "", local_files_only=True)
    except (OSError, ValueError):
        return False
    saved = saved.get("text_config", saved)
    return output is not None and len(output.weight) == saved.get("vocab_size")


def _is_read(parameter: nn.Parameter) -> bool:
    return bool(getattr(parameter, READ, False))


def own_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of the base, with the names that they have without adapters."""
    for name, module in model.named_modules():
        path = [part for part in name.split(".") if part not in ("base_layer", "original_module")]
        if not any(part.startswith(("modules_to_save", "lorachord_", "lora_")) for part in path):
            yield ".".join(path), module


def _upwards(name: str) -> list[str]:
    """A module's name and those of all that it lies in, the model itself left out."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts), 0, -1)]


def _has_blocks(model: nn.Module, name: str) -> bool:
    """Whether a part is, or has, one of several blocks."""
    blocks = any(isinstance(module, nn.ModuleList) for module in model.get_submodule(name).modules())
    return blocks or any(part.isdigit() for part in name.split("."))


def _unmistakable(model: nn.Module, name: str) -> list[str]:
    """A module's name, or those of its children where another module's ends like it."""
    others = (other for other, _ in own_modules(model) if not inside(other, (name,)))
    children = [f"{name}.{child}" for child, _ in model.get_submodule(name).named_children()]
    return children if children and any(other.endswith(name) for other in others) else [name]
