"""The LM Evaluation Harness on a run's tasks agrees with itself on the merged models."""

import json
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM

import lorachord as lc
from lorachord.harness import LorachordLM, score_by_harness
from lorachord.runs.train import train
from lorachord_cli import main
from tests.integration.test_usage import stir
from tests.tiny_data import recipe, tokenizer, write_rows

CHOICE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}} Answer:"
doc_to_choice: "{{{{options}}}}"
doc_to_target: label
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
WRITTEN = """
task: echoes
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{text}}}} Answer:"
doc_to_target: "{{{{text}}}}"
generation_kwargs: {{max_gen_toks: 3, until: ["yes"]}}
metric_list: [{{metric: exact_match}}]
"""
FILLERS = ("up", "down", "one", "two", "big", "small", "red", "blue", "or", "-")


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks with options of different lengths, and one whose answers are written."""
    folder = tmp_path_factory.mktemp("harness")
    for name, options in (("colours", ["no", "yes yes one", "red"]), ("sizes", ["big two", "small"])):
        rows = [
            {"text": f"{a} {b}", "options": options, "label": (index + place) % len(options)}
            for index, a in enumerate(FILLERS)
            for place, b in enumerate(FILLERS[:3])
        ]
        write_rows(folder / f"{name}.jsonl", rows)
        (folder / f"{name}.yaml").write_text(CHOICE.format(name=name, file=folder / f"{name}.jsonl"))
    (folder / "echoes.yaml").write_text(WRITTEN.format(file=folder / "sizes.jsonl"))
    return folder


def run_of(method: dict[str, Any], model: Path, data: Path, out: Path, **parts: Any) -> Path:
    made = recipe(model, "colour", "size", model={"kind": "decoder"}, method=method, training={"max_steps": 2}, **parts)
    path = train(made, out, data_dir=data).path
    stir(path)
    return path


@pytest.fixture(scope="module")
def run(tiny_llama: Path, task_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of({"name": "mtl_lora", "r": 4}, tiny_llama, task_files, tmp_path_factory.mktemp("run") / "run")


def asked(model: Any, name: str, folder: Path, **how: Any) -> dict[str, Any]:
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return lm_eval.simple_evaluate(model=model, tasks=[name], task_manager=manager, bootstrap_iters=0, **how)


def items(told: dict[str, Any], name: str) -> list[tuple[float, float, list[float]]]:
    samples = sorted(told["samples"][name], key=lambda sample: sample["doc_id"])
    return [
        (sample["acc"], sample["acc_norm"], [float(likelihood) for likelihood, _ in sample["filtered_resps"]])
        for sample in samples
    ]


@pytest.mark.parametrize(("task", "name"), [("colour", "colours"), ("size", "colours"), ("size", "sizes")])
def test_every_item_is_that_of_the_merged_model(task: str, name: str, run: Path, questions: Path) -> None:
    model, kind, _ = lc.runs.use.load_run(run)
    merged = lc.merge(model, task=task)
    expected = items(asked(HFLM(pretrained=merged, tokenizer=kind.tokenizer, batch_size=4), name, questions), name)
    found = items(asked(LorachordLM(str(run), task, batch_size=4), name, questions), name)
    assert len(found) == 30
    for (acc, norm, values), (own_acc, own_norm, own_values) in zip(expected, found, strict=True):
        assert (own_acc, own_norm) == (acc, norm)
        assert own_values == pytest.approx(values, abs=1e-4)


def test_tasks_of_one_run_answer_as_themselves(run: Path, questions: Path) -> None:
    found = score_by_harness(run, ["colour=colours", "size=colours", "size=sizes", "size=echoes"], include=questions)
    by_pair = {(score["task"], score["harness"], score["metric"]): score["value"] for score in found}
    for task, name in (("colour", "colours"), ("size", "sizes")):
        told = asked(LorachordLM(str(run), task), name, questions)["results"][name]
        for metric in ("acc", "acc_norm"):
            assert by_pair[task, name, metric] == told[f"{metric},none"]
    assert ("size", "echoes", "exact_match") in by_pair
    assert len(by_pair) == 7


def test_the_model_type_is_known_to_the_harness(run: Path, questions: Path) -> None:
    arguments = {"run": str(run), "task": "size"}
    told = asked("lorachord", "sizes", questions, model_args=arguments, limit=4)
    assert told["results"]["sizes"]["sample_len"] == 4


def test_the_command_prints_and_says_json(run: Path, questions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "evaluate",
        str(run),
        "--harness",
        "sizes",
        "--task",
        "size",
        "--include",
        str(questions),
        "--limit",
        "6",
    ]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["task", "harness", "metric", "score", "stderr"]
    assert [line.split()[:3] for line in lines[1:]] == [["size", "sizes", "acc"], ["size", "sizes", "acc_norm"]]
    assert main([*command, "--json"]) == 0
    assert [score["metric"] for score in json.loads(capsys.readouterr().out)] == ["acc", "acc_norm"]


def test_an_adapter_that_chooses_by_the_prompt_sees_no_answer(
    tiny_llama: Path, task_files: Path, questions: Path, tmp_path: Path
) -> None:
    path = run_of({"name": "mixlora", "r": 4}, tiny_llama, task_files, tmp_path / "run")
    model = LorachordLM(str(path), "size", batch_size=3)
    found = items(asked(model, "colours", questions), "colours")
    words = tokenizer()
    for text, answer, value in (("up up", "no", 0), ("up up", "yes yes one", 1)):
        prompt, ids = (words(part, add_special_tokens=False, return_tensors="pt").input_ids for part in
                       (f"{text} Answer:", f" {answer}"))  # fmt: skip
        with lc.on_task(model.model, "size"):
            # Before the answer the model has the prompt alone.
            first = model.model(input_ids=prompt, use_cache=True).logits[0, -1].log_softmax(-1)[ids[0, 0]]
        if value == 0:
            assert found[0][2][0] == pytest.approx(float(first), abs=1e-5)
        else:
            assert found[0][2][1] < float(first)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["sizes"], r"Which of the tasks colour, size is asked sizes\? Write it as colour=sizes"),
        (["sice=sizes"], r"No task is called 'sice'. Did you mean 'size'"),
        (["size=sises"], r"no task 'sises'. Did you mean 'sizes'"),
    ],
)
def test_what_is_not_there_is_told_before_weights(
    names: list[str], message: str, run: Path, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("weights are read")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", read)
    with pytest.raises(ValueError, match=message):
        score_by_harness(run, names, include=questions)


def test_encoders_and_other_rows_are_refused(
    run: Path, tiny_bert: Path, task_files: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = train(recipe(tiny_bert, "colour", training={"max_steps": 1}), tmp_path / "run", data_dir=task_files).path
    with pytest.raises(ValueError, match="this one is an encoder"):
        score_by_harness(encoder, ["sizes"], include=questions)
    assert main(["evaluate", str(run), "--harness", "sizes", "--again"]) == 2
    assert "leave out --again" in capsys.readouterr().err
