"""Adapters that version 0.1.0 has saved, one of each method, load and compute what they computed then."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from lorachord.core.registry import all_methods
from tests.contract.contract import MIXED, logits
from tests.tiny_models import tiny

SAVED = Path(__file__).parent / "format_1"


@pytest.mark.parametrize("method", sorted(folder.name for folder in SAVED.iterdir()))
def test_a_saved_adapter_of_format_1_computes_what_it_did(method: str) -> None:
    model = PeftModel.from_pretrained(tiny("llama"), SAVED / method).eval()
    found = logits(model, MIXED)
    torch.testing.assert_close(found, load_file(SAVED / method / "expected.safetensors")["logits"])
    assert not torch.allclose(found, logits(tiny("llama"), None), atol=1e-3)


def test_there_is_a_saved_adapter_of_every_method() -> None:
    ours = {name for name, cls in all_methods().items() if cls.__module__.startswith("lorachord.methods")}
    assert ours == {folder.name for folder in SAVED.iterdir()}
