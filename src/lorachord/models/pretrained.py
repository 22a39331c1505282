"""A base model and its tokenizer, by name."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers import PreTrainedModel as Model
from transformers import PreTrainedTokenizerBase as Tokenizer

from lorachord.hub import say_asked
from lorachord.models.resolve import resolve

logger = logging.getLogger(__name__)


def load_encoder(
    name: str,
    num_labels: int,
    dtype: torch.dtype = torch.float32,
    problem_type: str | None = None,
    *,
    say_new: bool = True,
) -> tuple[Model, Tokenizer]:
    """A sequence classifier and its tokenizer, which has a token for padding.

    Weights that the checkpoint lacks, such as the classifier's, or has for another number of labels, are drawn from
    torch's generator: the same after the same `torch.manual_seed`.

    Args:
        name: see `resolve`.
        num_labels: outputs of the classifier.
        dtype: of the weights. Default float32.
        problem_type: what transformers takes the labels for. Default None: it infers that from the labels.
        say_new: log which weights are drawn at random. Leave it out where an adapter brings them. Default true.

    Raises:
        ValueError: see `resolve`; or the model has no sequence classifier, or its checkpoint lacks other weights.
    """
    source = resolve(name)
    config = _config(name, source, num_labels=num_labels, problem_type=problem_type)
    if type(config) not in transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ValueError(f"{name} is a {config.model_type}, which has no sequence classifier, so it is no encoder.")
    tokenizer = _tokenizer(source)
    if config.pad_token_id is None:
        # A classifier on a decoder reads the last token that is no padding.
        config.pad_token_id = tokenizer.pad_token_id
    options: Any = {"config": config, "dtype": dtype, "ignore_mismatched_sizes": True}
    model, found = _load(AutoModelForSequenceClassification, source, options)
    if isinstance(getattr(model, "score", None), torch.nn.Module):
        # Such a classifier reads the last token that is no padding, whatever its checkpoint was padded with.
        model.config.pad_token_id = tokenizer.pad_token_id
    new = sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])})
    prefix = f"{model.base_model_prefix}."
    _refuse(name, [key for key in new if key.startswith(prefix) and not key.startswith(f"{prefix}pooler.")])
    if new and say_new:
        logger.info("%s has no weights for %s: drawn at random", name, ", ".join(new))
    return model, tokenizer


def load_decoder(
    name: str, dtype: torch.dtype = torch.float32, gguf_file: str | None = None
) -> tuple[Model, Tokenizer]:
    """A causal language model and its tokenizer, which has a token for padding; on which side is left as it is.

    Args:
        name: see `resolve`.
        dtype: of the weights. Default float32.
        gguf_file: see `resolve`. Default None.

    Raises:
        ValueError: see `resolve`; or the model is no causal language model, or its checkpoint lacks weights.
    """
    source = resolve(name, gguf_file)
    config = _config(name, source)
    causal = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    # BERT and its kin have a causal class too, but their checkpoints look both ways unless they say otherwise.
    masked = type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    if masked or not causal:
        raise ValueError(f"{name} is a {config.model_type}, no causal language model, so it is no decoder.")
    tokenizer = _tokenizer(source)
    model, found = _load(AutoModelForCausalLM, source, {"dtype": dtype})
    _refuse(name, sorted(found["missing_keys"]))
    return model, tokenizer


def load_shape(name: str, num_labels: int | None = None, gguf_file: str | None = None) -> tuple[Model, Tokenizer]:
    """A model without weights, on the meta device, and its tokenizer: enough to count by, in a second.

    Args:
        name: see `resolve`.
        num_labels: outputs of the classifier of an encoder; None for a decoder.
        gguf_file: see `resolve`. Default None.

    Raises:
        ValueError: see `resolve`; or it is no such model.
    """
    source = resolve(name, gguf_file)
    config = _config(name, source, **({} if num_labels is None else {"num_labels": num_labels}))
    kind: Any = AutoModelForCausalLM if num_labels is None else AutoModelForSequenceClassification
    with torch.device("meta"):
        return kind.from_config(config, trust_remote_code=False), _tokenizer(source)


def load_tokenizer(name: str, gguf_file: str | None = None) -> Tokenizer:
    """A model's tokenizer alone, which has a token for padding; arguments and errors as `load_decoder`."""
    return _tokenizer(resolve(name, gguf_file))


def _config(name: str, source: str, **changes: Any) -> Any:
    if not Path(source).is_dir():
        say_asked(source)
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False, **changes)
    except OSError as error:
        raise ValueError(
            f"{name} is no local folder and no packaged model, and the hub did not give it: {error}"
        ) from error


def _refuse(name: str, lacking: list[str]) -> None:
    if lacking:
        some = ", ".join(lacking[:3]) + (" ..." if len(lacking) > 3 else "")
        raise ValueError(f"The checkpoint of {name} lacks {len(lacking)} weights of the model, or has others: {some}.")


def _tokenizer(source: str) -> Tokenizer:
    tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError(f"The tokenizer of {source} has no token for padding and none for the end of a text.")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer  # type: ignore[no-any-return]


def _load(kind: Any, source: str, options: dict[str, Any]) -> tuple[Model, dict[str, Any]]:
    # The report of new weights is a table of warnings; what it says is checked and logged by the callers instead.
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        return kind.from_pretrained(source, output_loading_info=True, trust_remote_code=False, **options)  # type: ignore[no-any-return]
    finally:
        transformers.logging.set_verbosity(before)
