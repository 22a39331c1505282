import pytest
import torch
from peft import PeftModel
from transformers import RobertaConfig, RobertaForSequenceClassification

import lorachord as lc
from lorachord.heads import begin_at
from tests.tiny_models import perturb, tiny, token_ids

WIDTHS = {"cola": 2, "mnli": 3, "sts.b": 1}
MIXED = [0, 0, 1, 2]


def with_heads(method: str = "mtl_lora", architecture: str = "bert") -> PeftModel:
    model = lc.attach(lc.add_heads(base(architecture), WIDTHS), method, tasks=list(WIDTHS), r=2)
    perturb(model, 0.3)
    return model.eval()


def base(architecture: str = "bert", num_labels: int = 2) -> torch.nn.Module:
    if architecture == "bert":
        return tiny("bert", num_labels=num_labels)
    torch.manual_seed(0)
    sizes = dict(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    return RobertaForSequenceClassification(RobertaConfig(**sizes, num_labels=num_labels, pad_token_id=0)).eval()


@pytest.mark.parametrize("method", ["mtl_lora", "lora", "peft_lora"])
@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_each_sample_goes_through_the_head_of_its_task(method: str, architecture: str) -> None:
    model, tokens = with_heads(method, architecture), token_ids()
    with lc.on_task(model, torch.tensor(MIXED)):
        together = model(input_ids=tokens).logits
    assert together.shape == (4, 3)
    for sample, task in enumerate(MIXED):
        with lc.on_task(model, task):
            alone = model(input_ids=tokens[sample : sample + 1]).logits
        torch.testing.assert_close(together[sample], alone[0], rtol=1e-4, atol=1e-5)
        width = list(WIDTHS.values())[task]
        assert together[sample, width:].eq(torch.finfo(together.dtype).min).all()
        assert together[sample, :width].all()


def test_a_sample_trains_the_head_of_its_task_alone() -> None:
    model = with_heads().train()
    with lc.on_task(model, "mnli"):
        model(input_ids=token_ids()).logits.square().sum().backward()
    heads = model.base_model.model.classifier.modules_to_save["default"]
    assert heads.of("mnli").weight.grad.abs().sum() > 0
    assert heads.of("cola").weight.grad is None


def test_heads_need_the_tasks() -> None:
    with pytest.raises(ValueError, match="on_task"):
        with_heads("lora")(input_ids=token_ids())


@pytest.mark.parametrize("method", ["mtl_lora", "lora"])
@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_an_exported_task_has_its_head_as_the_classifier(method: str, architecture: str, tmp_path: object) -> None:
    model, tokens = with_heads(method, architecture), token_ids()
    for task, width in WIDTHS.items():
        with lc.on_task(model, task):
            expected = model(input_ids=tokens).logits[:, :width]
        folder = lc.export_lora(model, f"{tmp_path}/{task}", task=task)
        plain = PeftModel.from_pretrained(base(architecture, num_labels=width), folder).eval()
        torch.testing.assert_close(plain(input_ids=tokens).logits, expected, rtol=1e-3, atol=1e-4)
        merged = lc.merge(model, task=task)
        assert merged.config.num_labels == width
        torch.testing.assert_close(merged(input_ids=tokens).logits, expected, rtol=1e-3, atol=1e-4)
        assert type(merged.classifier) is type(base(architecture).classifier)


def test_heads_without_a_task_cannot_be_exported_or_merged(tmp_path: object) -> None:
    model = with_heads("lora")
    for refused in (lambda: lc.export_lora(model, f"{tmp_path}/out"), lambda: lc.merge(model)):
        with pytest.raises(ValueError, match=r"say which task: cola, mnli, sts\.b"):
            refused()


def test_heads_are_saved_with_the_adapter(tmp_path: object) -> None:
    model, tokens = with_heads(), token_ids()
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(lc.add_heads(base(), WIDTHS), str(tmp_path), adapter_name="other").eval()
    for one in (model, loaded):
        with lc.on_task(one, torch.tensor(MIXED)):
            one.found = one(input_ids=tokens).logits
    torch.testing.assert_close(loaded.found, model.found)


@pytest.mark.parametrize(
    ("model", "widths", "message"),
    [("llama", {"a": 2}, "no head called classifier or score"), ("bert", {"a": 0}, "at least one output")],
)
def test_bad_heads_are_refused(model: str, widths: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lc.add_heads(tiny(model), widths)


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_a_regression_head_begins_at_the_mean_of_its_answers(architecture: str) -> None:
    model = lc.add_heads(base(architecture), WIDTHS)
    begin_at(model, "sts.b", 2.7)
    with lc.on_task(model, [2, 2, 0, 1]):
        found = model.eval()(input_ids=token_ids()).logits.detach()
    assert (found[:2, 0] - 2.7).abs().max() < 0.5
    # Two classes and three.
    assert found[2, :2].abs().max() < 0.5
    assert found[3].abs().max() < 0.5
    shared = base(architecture, num_labels=1)
    begin_at(shared, "sts.b", -1.5)
    assert (shared.eval()(input_ids=token_ids()).logits.detach() + 1.5).abs().max() < 0.5


def test_heads_are_no_layers_to_adapt() -> None:
    base = lc.add_heads(tiny("bert"), {"a": 2, "b": 3})
    assert lc.target_layers(base) == lc.target_layers(tiny("bert"))
