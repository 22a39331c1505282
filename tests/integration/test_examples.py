"""The scripts of `examples/` run as a user runs them, and the quickstart shows them as they are."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lorachord.models.resolve import resolve
from tests.tiny_data import CHAT_TEMPLATE, save_model, tokenizer
from tests.tiny_models import tiny

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(script: Path, base: str, folder: Path) -> str:
    threads = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-W", "ignore", str(script), base]
    environment = {**os.environ, **threads, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def body(script: Path) -> str:
    """Without the docstring."""
    return script.read_text(encoding="utf-8").split('"""', 2)[2].strip()


def test_there_are_six_and_each_is_run_here() -> None:
    names = ["decoder", "embeddings", "fuse_loras", "plain_loop", "trl_sft", "your_rows"]
    assert [script.stem for script in EXAMPLES] == names


def test_rows_of_ones_own_train_score_and_export(tmp_path: Path) -> None:
    printed = run(ROOT / "examples" / "your_rows.py", resolve("minilm"), tmp_path)
    assert "'eval_mean': 1.0" in printed
    for task in ("team", "urgent"):
        assert (tmp_path / "out" / "loras" / task / "adapter_model.safetensors").is_file()


def test_the_readmes_example_prints_what_it_shows(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code, shown = re.search(r"```python\n(.*?)```\n```\n(.*?)```", text, re.DOTALL).groups()  # type: ignore[union-attr]
    assert '"sentence-transformers/all-MiniLM-L6-v2"' in code
    script = tmp_path / "readme.py"
    # The same model from a package.
    script.write_text(code.replace('"sentence-transformers/all-MiniLM-L6-v2"', "__import__('sys').argv[1]"))
    assert run(script, resolve("minilm"), tmp_path).splitlines()[-1] == shown.strip()


def test_a_loop_of_ones_own_learns_with_penalties_and_surgery(tmp_path: Path) -> None:
    lines = run(ROOT / "examples" / "plain_loop.py", resolve("minilm"), tmp_path).splitlines()
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in lines]
    assert losses[-1] < losses[0]


def test_a_decoder_trains_is_loaded_and_writes(tiny_llama: Path, tmp_path: Path) -> None:
    printed = run(ROOT / "examples" / "decoder.py", str(tiny_llama), tmp_path)
    assert "'eval_worst'" in printed
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()


def test_trls_script_trains_two_instruction_sets_and_exports(tmp_path: Path) -> None:
    base = save_model(tiny("llama"), tmp_path / "base")
    words = tokenizer()
    words.chat_template = CHAT_TEMPLATE
    words.save_pretrained(base)
    printed = run(ROOT / "examples" / "trl_sft.py", str(base), tmp_path)
    assert "'eval_colour_loss'" in printed
    for task in ("mood", "colour"):
        assert (tmp_path / "out" / "loras" / task / "adapter_model.safetensors").is_file()
    assert body(ROOT / "examples" / "trl_sft.py") in (ROOT / "docs" / "trl.md").read_text(encoding="utf-8")


def test_embeddings_train_with_a_loss_for_each_task_and_export(tiny_bert: Path, tmp_path: Path) -> None:
    run(ROOT / "examples" / "embeddings.py", str(tiny_bert), tmp_path)
    for task in ("alike", "answers"):
        assert (tmp_path / "out" / "loras" / task / "modules.json").is_file()
    assert body(ROOT / "examples" / "embeddings.py") in (ROOT / "docs" / "embeddings.md").read_text(encoding="utf-8")


def test_finished_loras_are_fused(tiny_bert: Path, tmp_path: Path) -> None:
    printed = run(ROOT / "examples" / "fuse_loras.py", str(tiny_bert), tmp_path)
    assert [line.split()[0] for line in printed.splitlines()] == ["average", "task_arithmetic", "ties"]
    assert (tmp_path / "out" / "fused" / "adapter_config.json").is_file()


@pytest.mark.parametrize(("script", "start"), [("your_rows", "import sys"), ("plain_loop", "base = ")])
def test_the_quickstart_shows_the_scripts(script: str, start: str) -> None:
    shown = body(ROOT / "examples" / f"{script}.py")
    assert shown[shown.index(start) :] in (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")


def test_ones_own_rows_take_twelve_lines() -> None:
    tree = ast.parse(body(ROOT / "examples" / "your_rows.py"))
    # The lists of rows, and `import sys` with its use for the name of the base, are not the library's.
    lines = {
        line
        for node in tree.body
        if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.List) and len(node.value.elts) > 2)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    imported = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert {alias.name for node in imported for alias in node.names if isinstance(node, ast.Import)} == {
        "sys",
        "lorachord",
    }
    assert len(lines) - len(imported) <= 12
