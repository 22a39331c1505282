"""What the cards of adapters and of exported LoRAs tell the hub."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from peft import PeftModel

import lorachord as lc
from lorachord.models.folders import cache_folder
from tests.tiny_models import tiny

# PEFT looks for the vocabulary of the base that is named.
pytestmark = pytest.mark.filterwarnings("ignore:Could not find a config file", "ignore:Setting `save_embedding_layers`")


def attached(named: str | None) -> PeftModel:
    model = tiny("llama")
    model.name_or_path = named
    return lc.attach(model, "lora", task_type="CAUSAL_LM")


@pytest.mark.parametrize(
    ("named", "base"),
    [
        ("owner/name", "owner/name"),
        ("gpt2", "gpt2"),
        (str(cache_folder() / "smollm2-135m"), "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("/somewhere/of/mine", None),
        ("./mine", None),
        ("", None),
    ],
)
@pytest.mark.parametrize("exported", [False, True])
def test_a_base_has_its_name_on_the_hub_and_a_path_stays_at_home(
    named: str, base: str | None, exported: bool, tmp_path: Path
) -> None:
    model = attached(named)
    lc.export_lora(model, tmp_path / "lora") if exported else model.save_pretrained(tmp_path / "lora")
    text = (tmp_path / "lora" / "README.md").read_text(encoding="utf-8")
    data = ModelCard(text).data
    assert data.base_model == base
    assert (data.library_name, data.pipeline_tag) == ("peft", "text-generation")
    assert {"lorachord", "lora"} <= set(data.tags)
    assert [tag for tag in data.tags if tag.startswith("base_model:")] == (
        [f"base_model:adapter:{base}"] if base else []
    )
    if base is None and named:
        assert named not in text


def test_a_classifiers_card_says_so(tmp_path: Path) -> None:
    model = lc.attach(tiny("bert"), "lora", task_type="SEQ_CLS")
    model.save_pretrained(tmp_path / "saved")
    assert (
        ModelCard((tmp_path / "saved" / "README.md").read_text(encoding="utf-8")).data.pipeline_tag
        == "text-classification"
    )
