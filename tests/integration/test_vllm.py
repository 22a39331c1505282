"""vLLM answers as transformers does: every method's exports, each with requests of its own, in one batch."""

import copy
import json
import shlex
import socket
import subprocess
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

import lorachord as lc
from lorachord.runs.serving import largest_rank, refusals
from lorachord.runs.train import train
from lorachord_cli import main
from tests.integration import vllm_environment
from tests.tiny_data import recipe, save_model
from tests.tiny_models import perturb, tiny, token_ids

PYTHON, SCRIPT = vllm_environment.python(), Path(__file__).with_name("generate_with_vllm.py")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason=f"no vLLM: run python3.11 {vllm_environment.__file__}"),
]
TASKS = ("colour", "size")
# vLLM's kernels for a CPU need heads of at least 32 features.
SIZES: dict[str, Any] = dict(hidden_size=64, intermediate_size=96, initializer_range=0.1, attention_bias=True)
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"r": (2, 6)},
    "multilora": {"r": 2, "num_loras": 2},
    "thanora": {"r": (3, 9)},
    "mtl_lora": {"r": 4, "num_ups": 2},
    "allot": {"r": (3, 7), "num_ups": 2, "choose": "all"},
}
"""`comol` and the other routed methods are here as their distilled LoRAs."""
FAST = {"max_steps": 12, "learning_rate": 0.03}
PROMPTS = [token_ids(1, length, seed).tolist()[0] for seed, length in enumerate((3, 7, 12))]
NUM_TOKENS = 12


ROUNDING = {"float32": 1e-4, "bfloat16": 0.04}
"""Of a logit, by the largest one."""


def shortfall(model: nn.Module, task: str | None, answers: list[list[int]]) -> float:
    """How far the words that vLLM wrote are below the likeliest ones, by the largest logit; 0 where all are these."""
    worst = 0.0
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert len(answer) == NUM_TOKENS
        with torch.no_grad(), nullcontext() if task is None else lc.on_task(model, task):
            logits_LV = model.eval()(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].float()
        chosen_L = logits_LV.gather(1, torch.tensor(answer)[:, None])[:, 0]
        below_L = (logits_LV.amax(1) - chosen_L) / logits_LV.abs().amax(1)
        worst = max(worst, float(below_L.max()))
    return worst


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tiny("llama", **SIZES), tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def distilled(base: Path, task_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA for each task, of a run of comol."""
    out = tmp_path_factory.mktemp("runs")
    made = recipe(base, *TASKS, kind="decoder", method={"name": "comol", "r": 4, "num_experts": 2}, training=FAST)
    run = train(made, out / "comol", data_dir=task_files).path
    assert main(["distill", str(run), "--to", "lora", "--out", str(out / "loras")]) == 0
    return out / "loras"


@dataclass
class Served:
    """What vLLM answered; `models` are transformers' own, with the task of each LoRA."""

    models: dict[str, tuple[nn.Module, str | None]]
    loras: dict[str, Path]
    answers: dict[str, list[list[int]]]
    folders: dict[str, Path]
    refused: dict[str, str]
    dtype: str


@pytest.fixture(scope="module", params=list(ROUNDING))
def served(
    request: pytest.FixtureRequest, base: Path, distilled: Path, tmp_path_factory: pytest.TempPathFactory
) -> Served:
    """One start of vLLM with all LoRAs of all methods; every prompt asks each of them, in one batch."""
    out, dtype = tmp_path_factory.mktemp(request.param), getattr(torch, request.param)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    models: dict[str, tuple[nn.Module, str | None]] = {"": (plain, None)}
    loras: dict[str, Path] = {}
    for method, settings in METHODS.items():
        how = {"tasks": list(TASKS), **settings}
        if method == "thanora":
            batches = {task: [{"input_ids": token_ids(8, 9, seed)}] for seed, task in enumerate(TASKS)}
            how["calibration"] = lc.calibrate(plain, method, batches=batches, **how)
        model = lc.attach(copy.deepcopy(plain), method, **how)
        perturb(model, 0.1)
        for task in TASKS if method in ("mtl_lora", "allot") else (None,):
            name = method if task is None else f"{method}_{task}"
            loras[name], models[name] = lc.export_lora(model, out / name, task=task), (model, task)
    for task in TASKS:
        loras[f"comol_{task}"] = distilled / task
        models[f"comol_{task}"] = (PeftModel.from_pretrained(copy.deepcopy(plain), distilled / task), None)
    refused = refused_folders(out / "refused", plain)
    given = {
        "base": str(base),
        "dtype": request.param,
        "max_lora_rank": 16,
        "loras": {name: str(path) for name, path in loras.items()},
        "refused": {name: str(path) for name, path in refused.items()},
        "prompts": PROMPTS,
        "num_tokens": NUM_TOKENS,
    }
    (out / "asked.json").write_text(json.dumps(given))
    command = [str(PYTHON), str(SCRIPT), str(out / "asked.json"), str(out / "told.json")]
    ended = subprocess.run(
        command, capture_output=True, text=True, env=vllm_environment.variables(), cwd=out, check=False
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    told = json.loads((out / "told.json").read_text())
    return Served(models, loras, told["answers"], refused, told["refused"], request.param)


CONFIGS: dict[str, dict[str, Any]] = {
    "a trained head": {"modules_to_save": ["lm_head"]},
    "trained embeddings": {"modules_to_save": ["embed_tokens"]},
    "trained tokens": {"trainable_token_indices": [3, 4]},
    "DoRA": {"use_dora": True},
    "biases": {"bias": "lora_only"},
    "PiSSA": {"init_lora_weights": "pissa"},
    "a rank above the server's": {"r": 32},
    "plain": {},
    "rslora": {"use_rslora": True},
    "adapted embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "an adapted head": {"target_modules": ["q_proj", "lm_head"]},
}


def refused_folders(out: Path, plain: nn.Module) -> dict[str, Path]:
    """PEFT's own adapters, some of which vLLM refuses."""
    for name, fields in CONFIGS.items():
        config = LoraConfig(**{"r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **fields})
        get_peft_model(copy.deepcopy(plain), config).save_pretrained(out / name, save_embedding_layers=False)
    return {name: out / name for name in CONFIGS}


def test_one_batch_of_all_loras_answers_as_transformers(served: Served) -> None:
    found = {name: shortfall(*served.models[name], answers) for name, answers in served.answers.items()}
    assert max(found.values()) <= ROUNDING[served.dtype], found
    # None answers as another.
    names = list(served.answers)
    for name, other in zip(names, names[1:] + names[:1], strict=True):
        assert shortfall(*served.models[name], served.answers[other]) > 2 * ROUNDING[served.dtype], (name, other)
    uneven = PeftConfig.from_pretrained(str(served.loras["thanora"]))
    assert largest_rank(uneven) > uneven.r


def test_what_the_export_warns_of_is_what_vllm_refuses(served: Served) -> None:
    # The printed command sets its rank.
    assert "greater than max_lora_rank" in served.refused.pop("a rank above the server's")
    del served.folders["a rank above the server's"]
    assert {name: bool(told) for name, told in served.refused.items()} == {
        name: bool(refusals(folder)) for name, folder in served.folders.items()
    }


@pytest.fixture
def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def asked(port: int, path: str, **fields: Any) -> Any:
    """What the server answers, as JSON."""
    body = json.dumps(fields).encode() if fields else None
    told = Request(f"http://127.0.0.1:{port}/{path}", body, {"Content-Type": "application/json"})
    with urlopen(told, timeout=60) as answer:
        return json.load(answer)


def test_the_command_that_the_export_prints_serves_each_task(
    base: Path, task_files: Path, tmp_path: Path, free_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    method = {"name": "mtl_lora", "r": 4, "num_ups": 2}
    made = recipe(base, *TASKS, kind="decoder", method=method, training=FAST)
    run = train(made, tmp_path / "run", data_dir=task_files).path
    capsys.readouterr()
    assert main(["export", str(run), "--out", str(tmp_path / "loras"), "--for", "vllm"]) == 0
    assert PYTHON is not None
    server, *command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert server == "vllm"
    # On this machine alone, and fast to start.
    command += f"--host 127.0.0.1 --port {free_port} --dtype float32 --max-model-len 64 --enforce-eager".split()
    with (tmp_path / "log").open("w") as log:
        started = subprocess.Popen(
            [str(PYTHON.with_name(server)), *command],
            stdout=log, stderr=log, env=vllm_environment.variables(), cwd=tmp_path,
        )  # fmt: skip
        try:
            deadline = monotonic() + 240
            while True:
                assert started.poll() is None, (tmp_path / "log").read_text()[-4000:]
                assert monotonic() < deadline
                try:
                    listed = asked(free_port, "v1/models")
                    break
                except URLError:
                    sleep(1)
            assert {*TASKS} < {model["id"] for model in listed["data"]}
            for task in TASKS:
                fields = dict(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True, return_token_ids=True)
                told = asked(free_port, "v1/completions", model=task, prompt=PROMPTS, **fields)["choices"]
                plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
                model = PeftModel.from_pretrained(plain, tmp_path / "loras" / task)
                assert shortfall(model, None, [choice["token_ids"] for choice in told]) <= ROUNDING["float32"]
        finally:
            started.terminate()
            started.wait(60)
