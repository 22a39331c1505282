"""Two ranks train as one process does on the same global batches, also where a task is absent from a rank."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lorachord.training.sharded import check_ranks

ROOT = Path(__file__).parents[2]


def trained(out: Path, ranks: int, script: str, *what: str) -> dict[str, Tensor]:
    out.mkdir()
    launch = [] if ranks == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, *launch, str(Path(__file__).with_name(script)), str(out), *what]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(out / "trained.safetensors")


def assert_ranks_change_nothing(tmp_path: Path, *what: str) -> None:
    one, two = (trained(tmp_path / str(ranks), ranks, *what) for ranks in (1, 2))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "rule"),
    [
        ("lora", "ortho_lora"),
        ("moelora", "none"),
        ("lora+align", "none"),
        pytest.param("mosld", "none", marks=pytest.mark.slow),
        pytest.param("mode", "none", marks=pytest.mark.slow),
        pytest.param("mtl_lora", "none", marks=pytest.mark.slow),
        pytest.param("multilora", "ortho_lora", marks=pytest.mark.slow),
        pytest.param("hydralora", "significant", marks=pytest.mark.slow),
        pytest.param("mixlora", "ortho_lora", marks=pytest.mark.slow),
        pytest.param("mor1e", "none", marks=pytest.mark.slow),
    ],
)
def test_two_ranks_equal_one_process(method: str, rule: str, tmp_path: Path) -> None:
    assert_ranks_change_nothing(tmp_path, "train_on_ranks.py", method, rule)


@pytest.mark.parametrize(
    "balance", ["popart", *(pytest.param(name, marks=pytest.mark.slow) for name in ("uncertainty", "dwa", "famo"))]
)
def test_two_ranks_weigh_losses_as_one_process_does(balance: str, tmp_path: Path) -> None:
    assert_ranks_change_nothing(tmp_path, "train_on_ranks.py", "lora", "ortho_lora", balance)


@pytest.mark.parametrize(
    ("method", "rule"), [("lora", "ortho_lora"), pytest.param("moelora", "none", marks=pytest.mark.slow)]
)
def test_a_base_that_accelerate_has_sharded_changes_nothing(method: str, rule: str, tmp_path: Path) -> None:
    assert_ranks_change_nothing(tmp_path, "train_on_ranks.py", method, rule, "equal", "sharded")
    one, two = (load_file(tmp_path / ranks / "adapter" / "adapter_model.safetensors") for ranks in ("1", "2"))
    torch.testing.assert_close(two, one, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "rule"),
    [("mtl_lora", "ortho_lora"), pytest.param("hydralora", "significant", marks=pytest.mark.slow)],
)
def test_adapters_over_a_sharded_base_equal_one_process(method: str, rule: str, tmp_path: Path) -> None:
    assert_ranks_change_nothing(tmp_path, "train_sharded.py", method, rule)


def test_launchers_that_hide_the_gradients_are_refused() -> None:
    deepspeed = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=object()))
    check_ranks(deepspeed, surgery=False)
    with pytest.raises(ValueError, match=r"DeepSpeed reduces.*torchrun"):
        check_ranks(deepspeed, surgery=True)
    for plugin, word in (({"fsdp_version": 1}, "version 2"), ({"cpu_ram_efficient_loading": True}, "loading false")):
        found = SimpleNamespace(**{"fsdp_version": 2, "cpu_ram_efficient_loading": False, **plugin})
        with pytest.raises(ValueError, match=word):
            check_ranks(SimpleNamespace(state=SimpleNamespace(fsdp_plugin=found)), surgery=False)
