"""The loop of the quickstart on two ranks, from its text, steps as it does on one."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel

import lorachord as lc
from tests.tiny_data import save_model
from tests.tiny_models import tiny, token_ids

ROOT = Path(__file__).parents[2]
HEAD = """
import os, sys, torch, lorachord as lc
from transformers import AutoModelForSequenceClassification, AutoTokenizer
hub = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(hub)
torch.manual_seed(0)
"""
TAIL = """
from safetensors.torch import save_file
rank = os.environ.get("RANK", "0")
trained = {name.removeprefix("module."): p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
save_file(trained, f"trained{rank}.safetensors")
# gloo's threads now and then abort the interpreter's own way out.
os._exit(0)
"""


def texts() -> tuple[str, str]:
    """The loop, and the same with the lines for several ranks."""
    page = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8").split("## A loop of your own")[1]
    loop = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]  # type: ignore[index]
    changes = re.search(r"```diff\n(.*?)```", page, re.DOTALL)[1].splitlines()  # type: ignore[index]
    lines, at = loop.splitlines(), 0
    for change in changes:
        if change.startswith("+"):
            lines.insert(at, change[1:])
            at += 1
        elif change.startswith(" "):
            at = lines.index(change[1:]) + 1 if change[1:] in lines[at:] else at
    # What stands before the first line that is kept.
    first = next(number for number, change in enumerate(changes) if change.startswith(" "))
    assert lines[:first] == [change[1:] for change in changes[:first]]
    return loop, "\n".join(lines)


def launched(script: str, base: Path, folder: Path, ranks: int) -> subprocess.CompletedProcess[str]:
    folder.mkdir()
    # Adam divides what is nothing but rounding by itself, and a router's choice may hang on the last digit.
    for old, new in (
        ("AdamW", "SGD"),
        ("lr=1e-3", "lr=0.5"),
        ("labels=2)", "labels=2).double()"),
        ("4)", "4).double()"),
    ):
        assert script.count(old) == 1
        script = script.replace(old, new)
    file = folder / "loop.py"
    file.write_text(HEAD + script + TAIL, encoding="utf-8")
    launch = [] if ranks == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    path = f"{ROOT / 'src'}{os.pathsep}{ROOT}"
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", *launch, str(file), str(base)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_documented_loop_steps_alike_on_two_ranks(tmp_path: Path) -> None:
    changes = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_labels": 2}
    base = save_model(tiny("bert", **changes), tmp_path / "base")
    loop, on_ranks = texts()
    for script, ranks in ((loop, 1), (on_ranks, 2)):
        done = launched(script, base, tmp_path / str(ranks), ranks)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "step 15: loss" in done.stdout
    alone = load_file(tmp_path / "1" / "trained0.safetensors")
    for rank in ("0", "1"):
        torch.testing.assert_close(
            load_file(tmp_path / "2" / f"trained{rank}.safetensors"), alone, rtol=1e-6, atol=1e-6
        )
    done = launched(on_ranks.replace(", find_unused_parameters=True", ""), base, tmp_path / "waiting", 2)
    assert done.returncode != 0
    assert "wrap the model with find_unused_parameters=True" in done.stderr


def test_the_documented_lines_fit_the_loop() -> None:
    loop, on_ranks = texts()
    added = [line for line in on_ranks.splitlines() if line not in loop.splitlines()]
    assert len(added) == 6
    assert on_ranks.index("Surgeon(") < on_ranks.index("DistributedDataParallel(model") < on_ranks.index("for step")


def test_a_reducer_that_waits_for_the_factors_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lc.attach(tiny("llama"), "lora", tasks=["a", "b"], r=2).train()
    surgeon = lc.Surgeon(model)
    for find, static, fine in ((False, False, False), (True, False, True), (False, True, True)):
        around = SimpleNamespace(find_unused_parameters=find, static_graph=static)
        monkeypatch.setattr(DistributedDataParallel, "_active_ddp_module", around)
        with lc.on_task(model, "a"):
            if fine:
                model(input_ids=token_ids())
            else:
                with pytest.raises(ValueError, match="find_unused_parameters=True"):
                    model(input_ids=token_ids())
    monkeypatch.setattr(DistributedDataParallel, "_active_ddp_module", None)
    surgeon.close()
    assert not model._forward_pre_hooks
