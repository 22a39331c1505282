"""Parts that a checkpoint lacks, such as a pooler, are drawn at random: they are trained and saved with the adapter."""

import copy
import json
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

import lorachord as lc
from lorachord.fusion.arithmetic import weighted_sum
from lorachord.tuner.trained_parts import lacking
from tests.tiny_models import perturb, tiny, token_ids

# XLNet's attention is no linear module.
pytestmark = pytest.mark.filterwarnings("ignore:all-linear misses 13 three-dimensional")

BERT = dict(
    vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0
)
MASKED = {
    "bert": ("BertForMaskedLM", transformers.BertConfig(**BERT)),
    "albert": ("AlbertForMaskedLM", transformers.AlbertConfig(**BERT, embedding_size=8)),
    "deberta": ("DebertaV2ForMaskedLM", transformers.DebertaV2Config(**BERT, pooler_hidden_size=16)),
    "distilbert": (
        "DistilBertForMaskedLM",
        transformers.DistilBertConfig(vocab_size=40, dim=16, hidden_dim=24, n_layers=2, n_heads=2, pad_token_id=0),
    ),
    "roberta": ("RobertaForMaskedLM", transformers.RobertaConfig(**BERT)),
    "xlnet": (
        "XLNetLMHeadModel",
        transformers.XLNetConfig(vocab_size=40, d_model=16, n_layer=2, n_head=2, d_inner=24, pad_token_id=0),
    ),
    # The model alone has no head of the masked tokens, which is that of the classifier, too.
    "modernbert": (
        "ModernBertModel",
        transformers.ModernBertConfig(**BERT, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2),
    ),
}
LACKING = {
    "bert": {"bert.pooler", "classifier"},
    "albert": {"albert.pooler", "classifier"},
    "deberta": {"pooler", "classifier"},
    "distilbert": {"pre_classifier", "classifier"},
    "roberta": {"classifier"},
    "xlnet": {"sequence_summary", "logits_proj"},
    "modernbert": {"head", "classifier"},
}
TASKS = {"a": 2, "b": 3}


@pytest.fixture(params=list(MASKED))
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    name: str = request.param
    return name, saved(name, tmp_path / "base")


def saved(name: str, folder: Path) -> Path:
    kind, config = MASKED[name]
    torch.manual_seed(0)
    getattr(transformers, kind)(config).save_pretrained(folder)
    return folder


def load(folder: Path, seed: int, num_labels: int = 2) -> PreTrainedModel:
    # Another process draws other numbers.
    torch.manual_seed(seed)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=num_labels).eval()


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model.eval()(input_ids=token_ids()).logits


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_a_checkpoint_lacks_what_it_has_not(checkpoint: tuple[str, Path]) -> None:
    name, folder = checkpoint
    assert set(lacking(load(folder, 1))) == LACKING[name]
    assert lacking(copy.deepcopy(load(folder, 1))) == []


@pytest.mark.parametrize("method", ["lora", "hydralora", "peft_lora"])
def test_an_adapter_brings_what_the_checkpoint_lacks(checkpoint: tuple[str, Path], method: str, tmp_path: Path) -> None:
    name, folder = checkpoint
    model = lc.attach(load(folder, 1), method, r=2)
    trained = {name for name, p in model.named_parameters() if p.requires_grad and "original" not in name}
    for part in LACKING[name]:
        assert any(part in one for one in trained), part
    perturb(model, 0.5)
    want = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    close(logits(PeftModel.from_pretrained(load(folder, 9), tmp_path / "adapter")), want)
    if method != "hydralora":
        lc.export_lora(model, tmp_path / "lora")
        close(logits(PeftModel.from_pretrained(load(folder, 9), tmp_path / "lora")), want)
        merged = lc.merge(model)
        close(logits(merged), want)
        merged.save_pretrained(tmp_path / "merged")
        assert lacking(load(tmp_path / "merged", 9)) == []
        close(logits(load(tmp_path / "merged", 9)), want)


def test_heads_by_task_go_with_the_parts_below_them(checkpoint: tuple[str, Path], tmp_path: Path) -> None:
    _, folder = checkpoint
    model = lc.attach(lc.add_heads(load(folder, 1), TASKS), "mtl_lora", tasks=list(TASKS), r=2)
    perturb(model, 0.5)
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(lc.add_heads(load(folder, 9), TASKS), tmp_path / "adapter")
    for task, width in TASKS.items():
        with lc.on_task(model, task):
            want = logits(model)
        with lc.on_task(again, task):
            close(logits(again), want)
        lc.export_lora(model, tmp_path / task, task=task)
        plain = load(folder, 9, num_labels=width)
        close(logits(PeftModel.from_pretrained(plain, tmp_path / task)), want[:, :width])


def test_a_second_adapter_has_parts_of_its_own(checkpoint: tuple[str, Path], tmp_path: Path) -> None:
    _, folder = checkpoint
    model = lc.attach(load(folder, 1), "lora", r=2)
    perturb(model, 0.5)
    first = logits(model)
    model.add_adapter("second", lc.LorachordConfig.build("lora", r=2, task_type="SEQ_CLS"))
    model.set_adapter("second")
    perturb(model, 0.5, seed=5)
    second = logits(model)
    model.set_adapter("default")
    close(logits(model), first)
    model.save_pretrained(tmp_path)
    close(logits(PeftModel.from_pretrained(load(folder, 9), tmp_path / "second")), second)


@pytest.fixture
def fused(checkpoint: tuple[str, Path], tmp_path: Path) -> tuple[Path, dict[str, Path], dict[str, Tensor]]:
    """A base, two adapters of it by task, one of them exported as a plain LoRA, and what they compute."""
    _, folder = checkpoint
    folders, want = {}, {}
    for seed, task in enumerate(TASKS):
        model = lc.attach(load(folder, seed), "lora", r=2)
        perturb(model, 0.5, seed=seed)
        want[task], folders[task] = logits(model), tmp_path / task
        if task == "a":
            model.save_pretrained(folders[task])
        else:
            lc.export_lora(model, folders[task])
        lc.merge(model).save_pretrained(tmp_path / f"whole_{task}")
    return folder, folders, want


@pytest.mark.parametrize("whole", [False, True])
def test_fusion_keeps_the_parts_of_each_task(
    fused: tuple[Path, dict[str, Path], dict[str, Tensor]], whole: bool, tmp_path: Path
) -> None:
    folder, folders, want = fused
    if whole:
        folders = {task: tmp_path / f"whole_{task}" for task in TASKS}
    vectors = lc.load_task_vectors(load(folder, 9), folders)
    for index, task in enumerate(TASKS):
        weights = [0.0, 0.0]
        weights[index] = 1.0
        merged = weighted_sum(vectors, weights)
        with merged.model() as model, lc.on_task(model, task):
            close(logits(model), want[task])
        close(logits(merged.as_model(task)), want[task])
        if not whole:
            lc.export_lora(merged.as_lora(), tmp_path / f"fused_{task}", task=task)
            again = PeftModel.from_pretrained(load(folder, 5), tmp_path / f"fused_{task}")
            close(logits(again), want[task])


def test_an_adapter_without_them_is_said_and_not_fused(tmp_path: Path) -> None:
    folder = saved("bert", tmp_path / "base")
    for seed, task in enumerate(TASKS):
        config = LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")
        get_peft_model(load(folder, seed), config).save_pretrained(tmp_path / task)
    with pytest.raises(ValueError, match=r"lacks bert\.pooler.*without it"):
        lc.load_task_vectors(load(folder, 9), {task: tmp_path / task for task in TASKS})
    # As an adapter of an earlier version was saved.
    model = lc.attach(copy.deepcopy(load(folder, 1)), "lora", r=2, target_modules=["query"])
    model.save_pretrained(tmp_path / "early")
    config = tmp_path / "early" / "adapter_config.json"
    tree = json.loads(config.read_text())
    del tree["base_fingerprint"]["outside"]
    config.write_text(json.dumps(tree))
    with pytest.warns(UserWarning, match=r"lacks weights of bert\.pooler"):
        PeftModel.from_pretrained(load(folder, 9), tmp_path / "early")


@pytest.mark.filterwarnings("ignore:The checkpoint of the base lacks")
def test_a_part_that_is_not_known_to_be_lacking_is_in_the_fingerprint(tmp_path: Path) -> None:
    folder = saved("bert", tmp_path / "base")
    model = lc.attach(copy.deepcopy(load(folder, 1)), "lora", r=2, target_modules=["query"])
    model.save_pretrained(tmp_path / "adapter")
    for base in (load(folder, 9), copy.deepcopy(load(folder, 9))):
        with pytest.raises(ValueError, match=r"bert\.pooler\.dense has other weights"):
            PeftModel.from_pretrained(base, tmp_path / "adapter")
    PeftModel.from_pretrained(copy.deepcopy(load(folder, 1)), tmp_path / "adapter")


def test_a_block_that_the_checkpoint_lacks_is_refused(tmp_path: Path) -> None:
    folder = saved("bert", tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("bert.encoder.layer.1.output.dense.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    base = load(folder, 1)
    with pytest.raises(ValueError, match=r"lacks weights of bert\.encoder\.layer\.1\.output\.dense"):
        lc.attach(base, "lora", r=2)
    assert not any("lorachord" in name for name, _ in base.named_modules())


def test_a_model_that_has_all_trains_its_head_alone(tmp_path: Path) -> None:
    base = tiny("bert")
    assert lacking(base) == []
    base.save_pretrained(tmp_path)
    model = lc.attach(load(tmp_path, 1, num_labels=3), "lora", r=2)
    assert set(model.peft_config["default"].modules_to_save) == {"classifier", "score"}
    assert any("pooler.dense.lorachord_adapter" in name for name, _ in model.named_parameters())


def test_a_larger_vocabulary_is_no_missing_part(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    model.resize_token_embeddings(48)
    assert lacking(model) == []


HEADED = {
    ("llama", "CausalLM"): {"lm_head"},
    ("llama", "TokenClassification"): {"classifier", "score"},
    ("llama", "QuestionAnswering"): {"qa_outputs"},
    ("gpt2", "TokenClassification"): {"classifier", "score"},
    ("bert", "TokenClassification"): {"classifier", "score"},
    ("bert", "QuestionAnswering"): {"qa_outputs"},
    ("bert", "MaskedLM"): {"cls.predictions"},
}
"""What is trained in full beside an adapter of a headless checkpoint, by the architecture and the kind of head."""


@pytest.mark.parametrize(("architecture", "kind"), HEADED)
def test_every_kind_of_head_that_a_checkpoint_lacks_comes_back(architecture: str, kind: str, tmp_path: Path) -> None:
    whole = tiny(architecture, **({"num_labels": 2} if architecture == "bert" else {}))
    whole.base_model.save_pretrained(tmp_path / "base")

    def base(seed: int) -> PreTrainedModel:
        torch.manual_seed(seed)
        cls: type[PreTrainedModel] = getattr(transformers, f"AutoModelFor{kind}")
        return cls.from_pretrained(tmp_path / "base").eval()

    def answer(model: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=token_ids())[0]

    model = lc.attach(base(1), "lora", r=2)
    assert set(model.peft_config["default"].modules_to_save) == HEADED[architecture, kind]
    perturb(model, 0.1)
    model.save_pretrained(tmp_path / "saved")
    lc.export_lora(model, tmp_path / "lora")
    for seed, folder in ((2, "saved"), (3, "lora")):
        again = PeftModel.from_pretrained(base(seed), tmp_path / folder).eval()
        torch.testing.assert_close(answer(again), answer(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["lora", "peft_lora"])
@pytest.mark.parametrize("heads", [False, True])
def test_a_model_whose_names_end_alike_attaches_with_the_defaults(method: str, heads: bool) -> None:
    _, config = MASKED["distilbert"]
    base = transformers.DistilBertForSequenceClassification(config)
    model = lc.attach(lc.add_heads(base, TASKS) if heads else base, method, tasks=list(TASKS), r=2)
    trained = [name for name, p in model.named_parameters() if p.requires_grad and "pre_classifier" in name]
    assert sorted(trained) == [
        f"base_model.model.pre_classifier.modules_to_save.default.{name}" for name in ("bias", "weight")
    ]


class Scores(nn.Module):
    """A head that is no linear layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, width))

    def forward(self, pooled_BD: Tensor) -> Tensor:
        return pooled_BD @ self.weight.T


def test_a_head_without_a_linear_layer_is_refused_in_words(tmp_path: Path) -> None:
    base = tiny("bert")
    base.classifier = Scores(base.config.hidden_size)
    for task in TASKS:
        lc.attach(copy.deepcopy(base), "lora", r=2).save_pretrained(tmp_path / task)
    with pytest.raises(ValueError, match="Scores, has no linear layer"):
        lc.load_task_vectors(base, {task: tmp_path / task for task in TASKS})
