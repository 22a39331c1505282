"""`lorachord fuse` from runs and from folders: what it writes, what it tells, what it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from lorachord.fusion.disentanglement import single
from lorachord.fusion.load import load_task_vectors
from lorachord.fusion.noise import with_noise
from lorachord.runs.adapters import find, folders, load_base, load_tasks
from lorachord.runs.train import train
from lorachord.runs.use import load_run
from lorachord.training.encoder import EncoderBatches
from lorachord.training.fusion_batches import input_batches
from lorachord.training.scoring import predict
from lorachord_cli import main
from tests.tiny_data import own, recipe, task_of, tokenizer
from tests.tiny_models import token_ids

ENCODER, DECODER = ("colour", "size", "choice"), ("colour", "choice", "echo")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, tiny_llama: Path, task_files: Path) -> Path:
    """Finished runs: `encoder` and `decoder` of mode single, `number` with a regression, `routed`, `joint`."""
    folder = tmp_path_factory.mktemp("runs")
    few = {"max_steps": 9}
    made = {
        "encoder": recipe(tiny_bert, *ENCODER, mode="single", training={"max_steps": 45}),
        "decoder": recipe(tiny_llama, *DECODER, kind="decoder", mode="single", training=few),
        "number": recipe(tiny_bert, "colour", "number", mode="single", training=few),
        "routed": recipe(tiny_bert, *ENCODER, method={"name": "hydralora", "r": 2}, training=few),
        "joint": recipe(tiny_bert, *ENCODER, training=few),
    }
    for name, each in made.items():
        train(each, folder / name, data_dir=task_files)
    return folder


def fuse(*arguments: object) -> int:
    return main(["fuse", *map(str, arguments)])


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def call(*arguments: object) -> str:
        assert fuse(*arguments) == 2
        return capsys.readouterr().err

    return call


def fused(out: Path, *arguments: object) -> dict[str, Any]:
    assert fuse("--out", out, *arguments) == 0
    found: dict[str, Any] = json.loads((out / "fusion.json").read_text())
    return found


def test_a_fusion_of_single_runs_tells_what_it_is_worth(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    found = fused(tmp_path / "o", "--method", "adamerging", "--set", "steps=5", runs / "encoder")
    assert found["tasks"] == list(ENCODER)
    assert found["adapted_on"] == "heldout"
    assert found["svd_error"] is None
    assert set(found["scores"]) >= {"individual", "average", "lambda 0.3", "fused"}
    assert len(found["coefficients"]) == 13
    assert (tmp_path / "o" / "coefficients.png").stat().st_size > 1000
    assert len((tmp_path / "o" / "predictions" / "dev" / "colour.jsonl").read_text().splitlines()) == 24
    printed = capsys.readouterr().out
    assert "individual" in printed
    assert "xi" in printed


def test_a_report_has_the_error_of_the_paper_and_the_distance_from_the_own_adapters(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    scores = fused(tmp_path / "o", "--method", "ties", runs / "encoder")["scores"]
    weak = scores["lambda 0.1"]
    assert sum(weak["weight_disentanglement_error"].values()) < sum(weak["distance_from_own_adapters"].values())
    assert weak["distance_from_own_adapters"].keys() == set(ENCODER)
    assert scores["fused"]["weight_disentanglement_error"] is None
    assert scores["fused"]["distance_from_own_adapters"].keys() == set(ENCODER)
    assert "distance from own adapters" in capsys.readouterr().out
    assert not any("xi" in scored for scored in scores.values())


def test_concrete_tells_the_density_of_its_mask(runs: Path, tmp_path: Path):
    options = ["--method", "concrete", "--set", "steps=2", "--set", "learning_rate=.5", "--max-rows", 8]
    found = fused(tmp_path / "o", *options, runs / "encoder")
    density = found["notes"]["mask_density"]
    assert density.keys() == found["coefficients"].keys()
    assert all(0 < value < 1 for value in density.values())
    assert len(set(density.values())) > 1
    assert found["options"]["schedule"] == "bilevel"


@pytest.mark.parametrize("kind", ["gaussian", "leading"])
def test_adapters_come_over_a_noisy_channel(
    kind: str, runs: Path, tmp_path: Path, task_files: Path, capsys: pytest.CaptureFixture[str]
):
    options = ["--method", "average", "--noise", kind, "--snr", "-3", "--seed", 5, "--full"]
    found = fused(tmp_path / "o", *options, runs / "encoder")
    assert found["noise"] == {"kind": kind, "snr": -3.0, "seed": 5}
    assert f"{kind}, -3 dB" in capsys.readouterr().out
    base, _, _ = load_base(find([str(runs / "encoder")]), None)
    clean = load_task_vectors(base, folders(find([str(runs / "encoder")])))
    noisy = with_noise(clean, -3.0, kind, 5)
    weights = AutoModelForSequenceClassification.from_pretrained(tmp_path / "o" / "model" / "size")
    name = next(iter(clean.layers))
    change = weights.get_submodule(name).weight - base.get_submodule(name).weight
    expected = sum(noisy.delta(name, task) for task in range(len(ENCODER))) / len(ENCODER)
    assert torch.allclose(change, expected, atol=1e-5)
    assert not torch.allclose(change, sum(clean.delta(name, task) for task in range(3)) / 3, atol=1e-3)


def test_noise_has_0_db_unless_told_and_makes_a_lora(runs: Path, tmp_path: Path):
    found = fused(tmp_path / "o", "--method", "average", "--noise", "leading", runs / "encoder")
    assert found["noise"]["snr"] == 0
    assert found["svd_error"] is None
    config = json.loads((tmp_path / "o" / "adapter" / "size" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert fused(tmp_path / "p", "--method", "average", runs / "encoder")["noise"] is None


def test_individual_adapters_score_as_their_runs_did(runs: Path, tmp_path: Path):
    scores = fused(tmp_path / "o", "--method", "average", runs / "encoder")["scores"]["individual"]
    metrics = json.loads((runs / "encoder" / "metrics.json").read_text())["dev"]
    assert scores == metrics


def test_each_task_gets_a_folder_that_peft_alone_loads(runs: Path, tmp_path: Path, tiny_bert: Path):
    fused(tmp_path / "o", "--method", "ties", "--rank", "3", runs / "encoder")
    for task in ENCODER:
        folder = tmp_path / "o" / "adapter" / task
        config = json.loads((folder / "adapter_config.json").read_text())
        assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 3, 3)
        width = 1 if task == "choice" else 2
        options = {"num_labels": width, "ignore_mismatched_sizes": True}
        base = AutoModelForSequenceClassification.from_pretrained(tiny_bert, **options)
        model = PeftModel.from_pretrained(base, str(folder)).eval()
        assert model(input_ids=torch.tensor([[4, 5, 6]])).logits.shape == (1, width)


def test_a_whole_model_answers_as_the_lora_does(runs: Path, tmp_path: Path, tiny_bert: Path):
    for name, extra in (("lora", []), ("full", ["--full"])):
        fused(tmp_path / name, "--method", "average", *extra, runs / "encoder")
    options = {"num_labels": 2, "ignore_mismatched_sizes": True}
    base = AutoModelForSequenceClassification.from_pretrained(tiny_bert, **options)
    lora = PeftModel.from_pretrained(base, str(tmp_path / "lora" / "adapter" / "size")).eval()
    whole = AutoModelForSequenceClassification.from_pretrained(tmp_path / "full" / "model" / "size")
    with torch.no_grad():
        ids = token_ids() % 19
        assert torch.allclose(lora(input_ids=ids).logits, whole(input_ids=ids).logits, atol=1e-5)
    assert (tmp_path / "full" / "model" / "size" / "tokenizer.json").is_file()


@pytest.mark.parametrize("method", ["adamerging", "collapse", "r_mtllmf", "concrete"])
def test_decoders_are_fused_on_options_and_on_what_they_write(method: str, runs: Path, tmp_path: Path):
    steps = [] if method == "collapse" else ["--set", "steps=2"]
    found = fused(tmp_path / "o", "--method", method, *steps, "--max-rows", 8, runs / "decoder")
    assert found["tasks"] == list(DECODER)
    assert (tmp_path / "o" / "adapter" / "adapter_model.safetensors").is_file()
    assert (found["svd_error"] is not None) == (method == "concrete")


def test_a_regression_is_realigned_and_collapsed_but_has_no_entropy(
    runs: Path, tmp_path: Path, refused: Callable[..., str]
):
    options = ["--set", "steps=2", "--shots", 4, "--protect", "layer.0"]
    found = fused(tmp_path / "r", "--method", "r_mtllmf", *options, runs / "number")
    assert not any(".layer.0." in name for name in found["coefficients"])
    fused(tmp_path / "c", "--method", "collapse", "--set", "measure=false", runs / "number")
    for method in ("adamerging", "concrete"):
        error = refused("--method", method, "--out", tmp_path / "o", runs / "number")
        assert "minimises an entropy, which the regression number has not" in error


def test_a_routed_adapter_collapses_into_one_plain_lora(runs: Path, tmp_path: Path):
    found = fused(tmp_path / "o", "--method", "collapse", "--rank", 2, runs / "routed")
    assert found["options"]["rank"] == 2
    config = json.loads((tmp_path / "o" / "adapter" / "size" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"]) == ("LORA", 2)


def test_collapse_says_which_layers_lose_most(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    notes = fused(tmp_path / "o", "--method", "collapse", runs / "encoder")["notes"]
    printed = capsys.readouterr().out
    assert max(notes["predicted_loss"], key=notes["predicted_loss"].get) in printed
    assert f"Rank correlation of the two over 13 layers: {notes['rank_correlation']:.2f}" in printed


def test_folders_need_a_recipe_only_where_data_are_needed(
    runs: Path, tmp_path: Path, tiny_bert: Path, refused: Callable[..., str]
):
    plain = {}
    for task in ("colour", "size"):
        plain[task] = f"{task}={shutil.copytree(runs / 'encoder' / task / 'adapter', tmp_path / f'{task}-adapter')}"
    found = fused(tmp_path / "o", "--method", "average", "--base", tiny_bert, *plain.values())
    assert "scores" not in found
    again = ["--method", "adamerging", "--base", tiny_bert, *plain.values()]
    assert "give run folders, or --recipe" in refused(*again, "--out", tmp_path / "a")
    described = ["--recipe", runs / "encoder" / "recipe.yaml", "--data", tmp_path / "none"]
    assert "none" in refused(*again, *described, "--out", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_what_was_adapted_on_is_said(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = ["--method", "adamerging", "--set", "steps=2", "--adapt-on", "dev"]
    assert fused(tmp_path / "o", *options, runs / "encoder")["adapted_on"] == "dev"
    assert "Adapted on the inputs of dev: its scores are no independent measure" in capsys.readouterr().out


def test_labels_do_not_reach_adaptation(runs: Path, task_files: Path, tmp_path: Path):
    # The same files with every label of dev turned round give the same coefficients, bit for bit.
    turned = shutil.copytree(task_files, tmp_path / "turned")
    for path in (turned / "colour" / "dev.jsonl",):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({**row, "label": 1 - row["label"]}) + "\n" for row in rows))
    options = ["--method", "adamerging", "--set", "steps=4", "--adapt-on", "dev", runs / "encoder"]
    one = fused(tmp_path / "one", *options)
    other = fused(tmp_path / "other", *options, "--data", turned)
    assert one["coefficients"] == other["coefficients"]
    scores = [found["scores"]["individual"]["tasks"]["colour"]["score"] for found in (one, other)]
    assert scores[0] == pytest.approx(1 - scores[1])


def test_batches_without_labels_do_not_read_them():
    class Blind(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            assert name != "label", "the label was read"
            return super().__getitem__(name)

    task = task_of(own("colour")[0])
    example = Blind(first="red up", second="", label=1, idx=0)
    (batch,) = input_batches(EncoderBatches(tokenizer(), (task,)), [example], 0)
    assert batch.answers is None
    (labelled,) = input_batches(EncoderBatches(tokenizer(), (task,)), [dict(example)], 0, labelled=True)
    assert labelled.answers is not None
    assert labelled.answers.tolist() == [1.0]


def test_individual_predictions_are_those_of_the_adapter(runs: Path, task_files: Path):
    given = find([str(runs / "encoder")])
    base, tokens, part = load_base(given, None)
    tasks = load_tasks(given, tokens, part, str(task_files))
    vectors = load_task_vectors(base, folders(given))
    assert tasks.data is not None
    assert tasks.kind is not None
    rows = tasks.data.data[1].dev
    with single(vectors, 1).model() as model:
        found = predict(model, tasks.kind, rows, 1)
    model, kind, _ = load_run(runs / "encoder" / "size")
    expected = predict(model, kind, rows, 0)
    for left, right in zip(found, expected, strict=True):
        assert left["scores"] == pytest.approx(right["scores"], abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "average"], "at least two; there is none"),
        (["--method", "average", "{runs}/encoder/size"], "only one, size"),
        (["--method", "averge", "{runs}/encoder"], "no fusion method 'averge'. Did you mean 'average'"),
        (["--method", "ties", "--set", "densty=.1", "{runs}/encoder"], "no option 'densty'. Did you mean 'density'"),
        (["--method", "ties", "--set", "density", "{runs}/encoder"], "--set takes OPTION=VALUE"),
        (["--method", "average", "{runs}/joint"], "is fused already"),
        (["--method", "average", "{runs}/encoder", "{runs}/number"], "several adapters of colour"),
        (["--method", "average", "{runs}/encoder/size", "{runs}/decoder/echo"], "trained on different bases"),
        (["--method", "average", "a={runs}/nowhere", "b={runs}/nowhere"], "Name it by --base"),
        (["--method", "adamerging", "--adapt-on", "train", "{runs}/encoder"], "nothing called 'train' to adapt on"),
        (["--method", "adamerging", "--adapt-on", "test", "{runs}/encoder"], "has no test split"),
        (["--method", "average", "--noise", "worst", "{runs}/encoder"], "no noise 'worst'"),
        (["--method", "average", "--noise", "leding", "{runs}/encoder"], "Did you mean 'leading'"),
        (["--method", "average", "--snr", "5", "{runs}/encoder"], "snr is 5 dB, but there is no noise"),
        (["--method", "average", "--noise", "leading", "--snr", "nan", "{runs}/encoder"], "a finite number of dB"),
        (["--method", "average", "--rank", "0", "{runs}/encoder"], "rank is 0"),
        (["--method", "average", "red={runs}/encoder"], "no run of the task 'red'; it has colour, size, choice"),
    ],
)
def test_bad_input_is_refused_in_words(
    arguments: list[str], message: str, runs: Path, tmp_path: Path, refused: Callable[..., str]
):
    error = refused("--out", tmp_path / "o", *[text.format(runs=runs) for text in arguments])
    assert message in error
    assert not (tmp_path / "o").exists()


def test_a_folder_that_holds_something_is_left_alone(runs: Path, tmp_path: Path, refused: Callable[..., str]):
    (tmp_path / "notes.txt").write_text("mine")
    assert "exists and is not empty" in refused("--method", "average", "--out", tmp_path, runs / "encoder")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
