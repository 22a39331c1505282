"""Two ranks train as one process does on the same global batches, also where a task is absent from a rank."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

SCRIPT = Path(__file__).with_name("train_on_ranks.py")
ROOT = Path(__file__).parents[2]


def trained(out: Path, ranks: int, *what: str) -> dict[str, Tensor]:
    out.mkdir()
    launch = [] if ranks == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *launch, str(SCRIPT), str(out), *what]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(out / "trained.safetensors")


@pytest.mark.parametrize(
    ("method", "rule"),
    [
        ("lora", "ortho_lora"),
        pytest.param("mtl_lora", "none", marks=pytest.mark.slow),
        pytest.param("multilora", "ortho_lora", marks=pytest.mark.slow),
        pytest.param("hydralora", "significant", marks=pytest.mark.slow),
    ],
)
def test_two_ranks_equal_one_process(method: str, rule: str, tmp_path: Path) -> None:
    one, two = (trained(tmp_path / str(ranks), ranks, method, rule) for ranks in (1, 2))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-6, atol=1e-6)
