"""The end of the demo: an exported LoRA predicts in a process that knows nothing of this package."""

from pathlib import Path

from lorachord.runs.demo import predicted_alone
from lorachord.runs.train import train
from lorachord.runs.use import export_run, predictions
from tests.tiny_data import own, recipe, rows, task_of


def test_a_process_with_peft_alone_predicts_as_the_run(tiny_bert: Path, task_files: Path, tmp_path: Path) -> None:
    method, training = {"name": "mtl_lora", "r": 2, "num_ups": 2}, {"max_steps": 30, "learning_rate": 3e-2}
    made = recipe(tiny_bert, "colour", "size", method=method, training=training)
    run = train(made, tmp_path / "run", data_dir=task_files)
    folders = {path.name: path for path in export_run(run.path, tmp_path / "loras")}
    # As the data of the run were drawn.
    [task] = map(task_of, own("colour"))
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(row["sentence1"] + "\n" for row in rows(task, 24, 1)), encoding="utf-8")
    expected = [record["prediction"] for record in predictions(run.path)["colour"]]
    assert len(set(expected)) == 2
    assert predicted_alone(str(tiny_bert), folders["colour"], texts) == expected
