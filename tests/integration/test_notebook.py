"""The example notebook: what is saved in it, and that it runs."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "two_data_sets.ipynb"
PLOTLY = "application/vnd.plotly.v1+json"
SMALL = 300_000
"""Bytes of the notebook, which no script of 5 MB is part of."""


def outputs(notebook: Any) -> list[dict[str, Any]]:
    return [output for cell in notebook["cells"] if cell["cell_type"] == "code" for output in cell["outputs"]]


def check(notebook: Any) -> None:
    found = outputs(notebook)
    assert not [output for output in found if output["output_type"] == "error"]
    drawn = [output["data"] for output in found if PLOTLY in output.get("data", {})]
    titles = [data[PLOTLY]["layout"]["title"]["text"] for data in drawn]
    assert "Differences from joint LoRA" in titles
    assert "Interference of the tasks" in titles
    assert "Overlap of the tasks' updates" in titles
    # Without Plotly each is a table, and text.
    assert all({"text/html", "text/plain"} <= data.keys() for data in drawn)
    printed = "".join("".join(output.get("text", "")) for output in found)
    assert re.search(r"joint LoRA|told the task", printed)
    assert "against lora" in printed


def test_the_saved_notebook_has_its_figures_and_a_verdict_and_no_paths() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    check(json.loads(text))
    assert len(text) < SMALL
    assert not re.search(r"/(home|root|tmp|work|usr)/", text)
    counts = [cell["execution_count"] for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert counts == [*range(1, len(counts) + 1)]


@pytest.mark.slow
def test_the_notebook_runs_from_two_data_sets_to_a_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="notebooks are run by nbclient")
    nbformat = pytest.importorskip("nbformat", reason="notebooks are run by nbclient")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources=where).execute()
    check(notebook)
    assert (tmp_path / "report.html").is_file()
