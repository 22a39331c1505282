import json

import pytest

import lorachord as lc
from lorachord.baselines import BASELINES
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
