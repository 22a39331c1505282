import json
import re
import shlex
from pathlib import Path

import pytest

import lorachord as lc
import lorachord_cli
import lorachord_help
from lorachord.baselines import BASELINES
from lorachord.data.suites import SUITES
from lorachord_cli import main


def test_methods_lists_every_method_with_its_facts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows.keys() == {*lc.all_methods(), *BASELINES}
    assert rows["mtl_lora"]["core"] == "task"
    assert rows["mtl_lora"]["needs_task_ids"] is True
    assert rows["mtl_lora"]["merges"] == "once per task"
    assert (rows["mosld"]["core"], rows["mosld"]["merges"]) == ("input", "no")
    assert rows["mosld"]["options"]["num_experts"] == [2, 4, 6, 8]
    assert (rows["lora"]["core"], rows["lora"]["merges"]) == ("static", "yes")


def test_methods_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(lc.all_methods()) + len(BASELINES)
    assert any("mtl_lora" in line and "a matrix between" in line and "needed" in line for line in lines)


def test_methods_prints_the_page_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "mtl_lora"]) == 0
    page = capsys.readouterr().out
    assert "Lambda_t A drop(x)" in page
    assert "arXiv 2410.09437" in page
    assert main(["methods", "peft_dora", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == ["peft_dora"]


@pytest.mark.parametrize("arguments", [["methods", "mtllora"], ["methods", "mtllora", "--json"]])
def test_an_unknown_method_ends_with_the_nearest(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert "'mtl_lora'" in printed.err
    assert not printed.out


def helped(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--help"])
    assert ended.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_the_help_of_fuse_names_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert tuple(lc.fusion.METHODS) == lorachord_help.FUSION_METHODS
    assert f"one of {', '.join(lc.fusion.METHODS)};" in helped(capsys, "fuse")


@pytest.mark.parametrize(
    "command",
    [
        "methods",
        "tasks",
        "runs",
        "check",
        "train",
        "evaluate",
        "compare",
        "predict",
        "merge",
        "export",
        "fuse",
        "report",
    ],
)
def test_the_help_of_a_command_has_examples_that_parse(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = lorachord_cli.build_parser()
    text = lorachord_help.EXAMPLES[command]
    lines = [line for line in text.splitlines() if "lorachord " in line and line.split()[0] in ("lorachord", "echo")]
    assert lines
    for line in lines:
        given = re.split(r" {3,}| > ", line.rpartition("lorachord ")[2])[0]
        assert parser.parse_args(shlex.split(given)).command == command
    assert " ".join(text.split()) in helped(capsys, command)


def test_suites_and_their_tasks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["suites", "--json"]) == 0
    assert {row["suite"]: len(row["tasks"]) for row in json.loads(capsys.readouterr().out)} == {
        name: len(tasks) for name, tasks in SUITES.items()
    }
    assert main(["tasks", "glue"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["task", *(task.name for task in SUITES["glue"])]
    assert main(["tasks", "gleu"]) == 2
    assert "'glue'" in capsys.readouterr().err


def test_the_tasks_of_a_recipe_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: {name: m, kind: encoder}\ntasks: {suite: glue, only: [glue_rte]}\n", encoding="utf-8")
    assert main(["tasks", str(path), "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)
    assert (row["task"], row["kind"], row["labels"]) == ("glue_rte", "pair", ["entailment", "not_entailment"])
