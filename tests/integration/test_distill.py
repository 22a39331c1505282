"""`lorachord distill`: a routed run as one plain LoRA for each task, and what it costs."""

import json
from pathlib import Path

import pytest
from peft import PeftConfig

from lorachord.runs.distill import distill_run
from lorachord.runs.train import train
from lorachord_cli import main
from tests.tiny_data import recipe

NAMES = ("colour", "size")


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, task_files: Path) -> Path:
    method = {"name": "hydralora", "r": 2, "num_experts": 2}
    made = recipe(tiny_bert, *NAMES, method=method, training={"max_steps": 9})
    return train(made, tmp_path_factory.mktemp("runs") / "routed", data_dir=task_files).path


def test_each_task_gets_a_lora_that_answers_and_its_cost_is_told(
    routed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "loras"
    assert main(["distill", str(routed), "--to", "lora", "--rank", "1", "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((out / "distill.json").read_text())
    for name in NAMES:
        own = found["tasks"][name]
        assert own["cost"] == own["routed"] - own["lora"]
        config = PeftConfig.from_pretrained(str(out / name))
        assert (config.peft_type.value, config.r, config.rank_pattern) == ("LORA", 1, {})
    (tmp_path / "new.jsonl").write_text('{"sentence1": "red up"}\n')
    assert main(["predict", str(out / "colour"), "--input", str(tmp_path / "new.jsonl")]) == 0


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_decoders_and_runs_of_single_tasks_are_distilled(
    kind: str, tiny_bert: Path, tiny_llama: Path, task_files: Path, tmp_path: Path
) -> None:
    method = {"name": "comol", "r": 4, "num_experts": 2}
    base, mode = (tiny_bert, "single") if kind == "encoder" else (tiny_llama, "joint")
    made = recipe(base, *NAMES, kind=kind, method=method, mode=mode, training={"max_steps": 4, "learning_rate": 0.01})
    run = train(made, tmp_path / "routed", data_dir=task_files).path
    found = distill_run(run, tmp_path / "loras")
    for name in NAMES:
        # With as many rows as the fit needs, and so small a change, a LoRA answers as the routed adapter does.
        assert abs(found["tasks"][name]["cost"]) < 0.1
        config = PeftConfig.from_pretrained(str(tmp_path / "loras" / name))
        assert config.task_type == ("SEQ_CLS" if kind == "encoder" else "CAUSAL_LM")
        (tmp_path / "new.jsonl").write_text('{"sentence1": "red up", "sentence2": "up"}\n')
        assert main(["predict", str(tmp_path / "loras" / name), "--input", str(tmp_path / "new.jsonl")]) == 0


def test_bad_input_is_refused_before_anything_is_written(
    routed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "loras"
    assert main(["distill", str(routed), "--to", "lora", "--rank", "0", "--out", str(out)]) == 2
    assert "at least 1" in capsys.readouterr().err
    assert main(["distill", str(routed), "--to", "lora", "--task", "colou", "--out", str(out)]) == 2
    assert "colour" in capsys.readouterr().err
    assert not out.exists()
