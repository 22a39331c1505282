"""sentence-transformers' trainer with a task for each data set, and LoRAs that the stock library loads."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch import Tensor

import lorachord as lc
from lorachord.sentence_transformers import MultiTaskSentenceTransformerTrainer, export_lora
from tests.integration import load_with_sentence_transformers_alone
from tests.tiny_models import perturb

datasets.disable_progress_bars()
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")

TASKS = ("similar", "pairs")
SIMILAR = [
    {"one": f"{left} up", "two": f"{right} down", "score": float(left == right)}
    for left in ("red", "blue", "big")
    for right in ("red", "big")
]
PAIRS = [
    {"question": f"{word} up", "answer": f"{other} down"}
    for word, other in (("up", "down"), ("big", "small"), ("yes", "no"), ("one", "two"))
]
ROWS = {"similar": Dataset.from_list(SIMILAR), "pairs": Dataset.from_list(PAIRS)}
TEXTS = ["red one", "big two down", "yes"]
OPTIONS: dict[str, dict[str, Any]] = {"mtl_lora": {"r": 2}, "lora": {"r": 2}, "moelora": {"r": 4, "balance": 2.0}}
SETTINGS: dict[str, Any] = dict(
    per_device_train_batch_size=2,
    learning_rate=1e-2,
    max_steps=4,
    multi_dataset_batch_sampler="round_robin",
    report_to=[],
    save_strategy="no",
    disable_tqdm=True,
    use_cpu=True,
    logging_steps=1,
)


@pytest.fixture
def model(tiny_bert: Path) -> SentenceTransformer:
    transformer = Transformer(str(tiny_bert))
    return SentenceTransformer(modules=[transformer, Pooling(16)], device="cpu").eval()


def config(method: str = "mtl_lora", **changes: Any) -> lc.LorachordConfig:
    fields = {"tasks": list(TASKS), "exclude_modules": ["pooler.dense"], **OPTIONS[method], **changes}
    return lc.LorachordConfig.build(method, **fields)


def trainer_of(
    model: SentenceTransformer, folder: Path, method: str = "mtl_lora", **given: Any
) -> MultiTaskSentenceTransformerTrainer:
    own = {
        key: given.pop(key) for key in list(given) if key in SentenceTransformerTrainingArguments.__dataclass_fields__
    }
    args = SentenceTransformerTrainingArguments(str(folder), **{**SETTINGS, **own})
    made = {"similar": losses.CoSENTLoss(model), "pairs": losses.MultipleNegativesRankingLoss(model, scale=1.0)}
    if given.get("loss") == "cached":
        given["loss"] = losses.MatryoshkaLoss(model, losses.CachedMultipleNegativesRankingLoss(model), [8])
    fields: dict[str, Any] = {"train_dataset": ROWS, "loss": made, "peft_config": config(method), **given}
    return MultiTaskSentenceTransformerTrainer(model, args, **fields)


def batches(trainer: MultiTaskSentenceTransformerTrainer) -> Iterator[dict[str, Any]]:
    for batch in trainer.get_train_dataloader():
        yield dict(batch)


def trained(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("method", ["mtl_lora", "moelora"])
def test_a_steps_loss_is_the_librarys_on_the_batchs_task_and_the_columns_mean_penalties(
    method: str, model: SentenceTransformer, tmp_path: Path
) -> None:
    trainer = trainer_of(model, tmp_path, method, task_weights={"pairs": 3.0})
    perturb(model, 0.2)
    # Without dropout, so that two passes are the same.
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.train()
    seen = []
    for batch in batches(trainer):
        name = batch["dataset_name"]
        features, labels = trainer.collect_features(batch)
        added = []
        with lc.on_task(model, name):
            expected = trainer.loss[name](features, labels) * (3.0 if name == "pairs" else 1.0)
            for column in features:
                model(column)
                added.append(lc.penalty(model).detach())
        assert (added[0] != added[1]) == (method == "moelora")
        torch.testing.assert_close(trainer.compute_loss(model, batch), expected + sum(added) / 2, rtol=1e-6, atol=1e-6)
        seen.append(name)
    assert seen[:4] in (["similar", "pairs"] * 2, ["pairs", "similar"] * 2)


def test_a_batch_of_one_task_leaves_the_cores_of_the_others(model: SentenceTransformer, tmp_path: Path) -> None:
    trainer = trainer_of(model, tmp_path)
    perturb(model, 0.2)
    [batch] = [batch for batch in batches(trainer) if batch["dataset_name"] == "pairs"][:1]
    model.train()
    trainer.compute_loss(model, batch).backward()
    cores = {name: p.grad for name, p in model.named_parameters() if name.endswith("transform") and p.grad is not None}
    assert cores
    for name, gradient_TRR in cores.items():
        assert not gradient_TRR[0].any(), name
        assert gradient_TRR[1].any(), name


def test_losses_of_the_tasks_and_scores_of_their_evaluators_are_told(
    model: SentenceTransformer, tmp_path: Path
) -> None:
    columns = ([row[name] for row in SIMILAR] for name in ("one", "two", "score"))
    evaluator = EmbeddingSimilarityEvaluator(*columns)
    trainer = trainer_of(
        model, tmp_path, eval_dataset=ROWS, evaluator={"similar": evaluator}, surgery="ortho_lora",
        gradient_accumulation_steps=2,
    )  # fmt: skip
    trainer.train()
    assert {"loss_similar", "loss_pairs", "surgery_conflicts"} <= trainer.state.log_history[0].keys()
    perturb(model, 0.5)
    model.eval()
    metrics = trainer.evaluate()
    assert {"eval_similar_loss", "eval_pairs_loss"} <= metrics.keys()
    scores = []
    for name in TASKS:
        with lc.on_task(model, name):
            scores.append(evaluator(model)["spearman_cosine"])
    told = [value for key, value in metrics.items() if key.endswith("similar_spearman_cosine")]
    assert told[0] == scores[0]
    assert scores[0] != scores[1]


def test_a_resumed_run_is_the_unbroken_one(model: SentenceTransformer, tiny_bert: Path, tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2}
    whole = trainer_of(model, tmp_path / "whole", **settings)
    whole.train()
    again = SentenceTransformer(modules=[Transformer(str(tiny_bert)), Pooling(16)], device="cpu")
    resumed = trainer_of(again, tmp_path / "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert resumed.state.global_step == 4
    one, two = trained(model), trained(again)
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


def test_stock_sentence_transformers_loads_a_lora_of_each_task(
    model: SentenceTransformer, tiny_bert: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    model.save_pretrained(str(base))
    expected, folders = {}, {}
    for method in ("mtl_lora", "lora"):
        adapted = SentenceTransformer(str(base), device="cpu")
        adapted.add_adapter(config(method))
        perturb(adapted, 0.3)
        for task in TASKS if method == "mtl_lora" else (None,):
            name = f"{method}_{task}"
            with lc.on_task(adapted, task or 0):
                expected[name] = adapted.encode(TEXTS)
            folders[name] = str(export_lora(adapted, tmp_path / name, task))
    given = json.dumps({"base": str(base), "folders": folders, "texts": TEXTS})
    # A process takes seconds to import what it needs: one for all.
    script = load_with_sentence_transformers_alone.__file__
    done = subprocess.run(
        [sys.executable, "-P", script], input=given, capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)
    plain = model.encode(TEXTS)
    for name, ways in found.items():
        for way in ways:
            np.testing.assert_allclose(way, expected[name], rtol=0, atol=1e-5)
        assert np.abs(expected[name] - plain).max() > 1e-2
    assert np.abs(expected["mtl_lora_similar"] - expected["mtl_lora_pairs"]).max() > 1e-2


BAD: list[tuple[str, dict[str, Any]]] = [
    (r"loss names 'pair', which is none of the tasks.*'pairs'", {"loss": {"similar": None, "pair": None}}),
    (r"loss has nothing for pairs", {"loss": {"similar": None}}),
    (r"train_dataset has nothing for similar", {"train_dataset": {"pairs": ROWS["pairs"]}}),
    (r"give the data set of each task", {"train_dataset": ROWS["pairs"]}),
    (r"evaluator names 'pear'", {"evaluator": {"pear": None}}),
    (r"task_weights names 'all'", {"task_weights": {"all": 1.0}}),
    (r"no rule 'ortho'", {"surgery": "ortho", "gradient_accumulation_steps": 2}),
    (r"gradient_accumulation_steps=2", {"surgery": "ortho_lora"}),
    (r"no adapter", {"peft_config": None}),
    (r"CachedMultipleNegativesRankingLoss embeds its texts again", {"loss": "cached"}),
    (r"fitted to its tasks", {"peft_config": lc.LorachordConfig.build("thanora", tasks=[*TASKS])}),
]


@pytest.mark.parametrize(("message", "given"), BAD, ids=[message for message, _ in BAD])
def test_bad_input_is_told_and_leaves_the_model_as_it_was(
    message: str, given: dict[str, Any], model: SentenceTransformer, tmp_path: Path
) -> None:
    before = set(model.state_dict())
    with pytest.raises(ValueError, match=message):
        trainer_of(model, tmp_path, **given)
    assert set(model.state_dict()) == before


def test_exports_that_cannot_be_are_refused_before_anything_is_written(
    model: SentenceTransformer, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="no adapter"):
        export_lora(model, tmp_path / "lora")
    model.add_adapter(config())
    for task, message in (("pear", "pear"), (None, "task")):
        with pytest.raises(ValueError, match=message):
            export_lora(model, tmp_path / "lora", task)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="not empty"):
        export_lora(model, tmp_path, "pairs")
    assert {path.name for path in tmp_path.iterdir()} == {"file"}


def test_an_adapter_of_pefts_own_trains_and_is_saved_by_the_library(model: SentenceTransformer, tmp_path: Path) -> None:
    trainer_of(model, tmp_path / "out", peft_config=LoraConfig(r=2, target_modules=["query"])).train()
    with pytest.raises(ValueError, match="PEFT's own"):
        export_lora(model, tmp_path / "lora", "pairs")
