"""Base models by name, with their tokenizers. Stands alone: knows no method and no task.

A name is a local folder, a small model that installs from the package registry, or a model on the hub (`owner/name`,
`hub:owner/name`). `resolve` finds what the name means and downloads a packaged model if need be. `load_encoder` gives a
sequence classifier, `load_decoder` a causal language model, each with its tokenizer. A folder that lacks files is
refused with their names, and no code of a model's repository is ever run.

`CATALOGUE` lists the packaged models; their weights are compared with a checksum before anything reads them:

>>> from lorachord.models import CATALOGUE, resolve
>>> CATALOGUE["minilm"].kind, CATALOGUE["minilm"].licence
('encoder', 'Apache-2.0')
>>> resolve("hub:sentence-transformers/all-MiniLM-L6-v2")
'sentence-transformers/all-MiniLM-L6-v2'
>>> resolve("minilmm")
Traceback (most recent call last):
ValueError: No packaged model is called 'minilmm'. Did you mean 'minilm' or 'minilm-l3'?
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lorachord.models.catalogue import CATALOGUE, Packaged
from lorachord.models.fetch import fetch
from lorachord.models.resolve import model_folder, name_on_hub, resolve

if TYPE_CHECKING:
    from lorachord.models.pretrained import load_decoder, load_encoder

__all__ = ["CATALOGUE", "Packaged", "fetch", "load_decoder", "load_encoder", "model_folder", "name_on_hub", "resolve"]


def __getattr__(name: str) -> Any:
    # transformers' models take seconds to import, and a name is resolved without them.
    if name in ("load_decoder", "load_encoder"):
        return getattr(import_module("lorachord.models.pretrained"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
