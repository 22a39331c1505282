"""Calibration on whole models: what is measured, what an adapter makes of it, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn

import lorachord as lc
from lorachord.calibration.inputs import Limits
from lorachord.families.covariance import Exact
from lorachord.methods.thanora import ThanoRA
from lorachord.tuner.layer import LorachordLinear
from tests.reference import thanora
from tests.tiny_models import perturb, tiny, token_ids

TASKS = ["a", "b"]
Batches = dict[str, list[dict[str, Tensor]]]


def inputs(num_batches: int = 3) -> Batches:
    return {
        task: [{"input_ids": token_ids(8, 7, seed=10 * index + batch)} for batch in range(num_batches)]
        for index, task in enumerate(TASKS)
    }


# PEFT's own LoRA finds out by itself that GPT-2's weights are transposed.
pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False but the target module is `Conv1D`")


def calibrate(base: nn.Module, batches: Any = None, **settings: Any) -> lc.Calibration:
    return lc.calibrate(base, "thanora", **{"tasks": TASKS, "batches": batches or inputs(), "r": 6, **settings})


def seen_by(base: nn.Module, name: str, batches: list[dict[str, Tensor]]) -> Tensor:
    """Every row that a module is given."""
    rows: list[Tensor] = []
    handle = base.get_submodule(name).register_forward_pre_hook(
        lambda module, args: rows.append(args[0].flatten(0, -2))
    )
    with torch.no_grad():
        for batch in batches:
            base(**batch)
    handle.remove()
    return torch.cat(rows)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=token_ids()).logits


def test_entropies_ranks_and_start_are_those_of_each_layers_own_inputs(architecture: str) -> None:
    base = tiny(architecture).double()
    found = calibrate(base, allocation="entropy", temperature=0.02, r=9)
    assert found.report["samples"] == {"a": 24, "b": 24}
    model = lc.attach(tiny(architecture).double(), "thanora", calibration=found)
    for name, own in found.report["entropies"].items():
        rows = [seen_by(base, name, batches) for batches in inputs().values()]
        expected = [float(thanora.spectral_entropy(x)) for x in rows]
        assert list(own.values()) == pytest.approx(expected, abs=1e-9), name
        ranks, _ = thanora.ranks(expected, 9, 0.02)
        assert found.found["ranks"][name] == ranks
        layer = model.get_base_model().get_submodule(name)
        adapter = layer.lorachord_adapter["default"]
        weight = layer.get_base_layer().weight.double()
        weight = weight.T if architecture == "gpt2" else weight
        blocks = thanora.svd_blocks(weight, [x.T @ x / len(x) for x in rows], ranks, adapter.scale)
        parts = zip(adapter.down_start.split(ranks), adapter.up_start.split(ranks, dim=1), blocks, strict=True)
        for down, up, (expected_down, expected_up) in parts:
            torch.testing.assert_close(up @ down, expected_up @ expected_down, rtol=1e-6, atol=1e-8)
        assert torch.equal(adapter.down[: adapter.own], adapter.down_start)


def test_padding_does_not_count() -> None:
    base, batches = tiny("llama"), inputs()
    padded = {
        task: [
            {
                "input_ids": nn.functional.pad(batch["input_ids"], (0, 4)),
                "attention_mask": nn.functional.pad(torch.ones_like(batch["input_ids"]), (0, 4)),
            }
            for batch in own
        ]
        for task, own in batches.items()
    }
    plain, found = calibrate(base, batches), calibrate(base, padded)
    for name, own in plain.report["entropies"].items():
        assert found.report["entropies"][name] == pytest.approx(own, abs=1e-5)


def test_neither_batches_nor_memory_nor_order_of_passes_matter() -> None:
    base = tiny("llama").double()
    together = calibrate(base)
    one = {task: [{"input_ids": torch.cat([batch["input_ids"] for batch in own])}] for task, own in inputs().items()}
    # Room for the covariances of one input of 24 features and no more: a pass over the batches for each.
    several = calibrate(base, limits=Limits(max_bytes=2 * 8 * 24 * 24))
    generators = {task: iter(own) for task, own in inputs().items()}
    for other in (calibrate(base, one), several, calibrate(base, generators)):
        assert other.found == together.found
        for name, start in together.start.items():
            torch.testing.assert_close(other.start[name], start, rtol=1e-7, atol=1e-9)


def test_layers_that_are_handed_one_tensor_share_its_covariance(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    original = Exact.__init__
    monkeypatch.setattr(Exact, "__init__", lambda self, d_in: (made.append(d_in), original(self, d_in))[1])
    calibrate(tiny("llama"))
    # Of two blocks, for two tasks: q, k and v; o; gate and up; down.
    assert sorted(made) == sorted([16, 16, 16, 24] * 2 * 2)


def test_wide_layers_are_sketched_and_say_how_little_room_is_too_little() -> None:
    base = tiny("llama")
    exact = calibrate(base)
    sketched = calibrate(base, limits=Limits(max_width=16, num_directions=20))
    for name, own in exact.report["entropies"].items():
        if name.endswith("down_proj"):
            found = sketched.report["entropies"][name]
            assert all(own[task] - 1e-4 <= found[task] < own[task] + 0.03 for task in TASKS)
        else:
            assert sketched.report["entropies"][name] == own
    with pytest.raises(
        ValueError, match=r"max_bytes = 1,000 holds no sketches of the inputs of .* fewer num_directions"
    ):
        calibrate(base, limits=Limits(max_bytes=1000, num_directions=20))


def test_only_the_first_samples_are_looked_at() -> None:
    base, batches = tiny("bert"), inputs(2)
    cut = {task: [own[0], {"input_ids": own[1]["input_ids"][:3]}] for task, own in batches.items()}
    found = calibrate(base, batches, max_samples=11)
    assert found.report["samples"] == {"a": 11, "b": 11}
    assert found.report["entropies"] == calibrate(base, cut).report["entropies"]


def test_the_base_is_left_as_it_was() -> None:
    base = tiny("bert").train()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    state = torch.get_rng_state()
    calibrate(base)
    assert base.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert not any(module._forward_pre_hooks for module in base.modules())


def test_saved_calibrations_make_the_same_adapter(architecture: str, tmp_path: Path) -> None:
    found = calibrate(tiny(architecture), target_modules="all-linear", spr=0.5)
    found.save(tmp_path / "calibration")
    loaded = lc.Calibration.load(tmp_path / "calibration")
    assert loaded.settings == json.loads(json.dumps(found.settings))
    models = []
    for calibration in (found, loaded):
        torch.manual_seed(0)
        models.append(lc.attach(tiny(architecture), "thanora", calibration=calibration, tasks=TASKS).state_dict())
    assert models[0].keys() == models[1].keys()
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())


def test_a_trained_adapter_loads_without_data_and_with_the_ranks_that_were_found(tmp_path: Path) -> None:
    model = lc.attach(tiny("llama"), "thanora", calibration=calibrate(tiny("llama"), temperature=0.005, r=9))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    (model(input_ids=token_ids()).logits.square().mean() + lc.penalty(model)).backward()
    optimizer.step()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny("llama"), tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert not torch.equal(logits(loaded), logits(tiny("llama")))
    ranks = [
        [layer.lorachord_adapter["default"].ranks for layer in found.modules() if isinstance(layer, LorachordLinear)]
        for found in (model, loaded)
    ]
    assert ranks[0] == ranks[1]
    assert len(set(ranks[0])) > 1


def test_it_exports_as_one_plain_lora_that_peft_alone_loads(architecture: str, tmp_path: Path) -> None:
    calibration = calibrate(tiny(architecture), r=5, dropout=0.0)
    model = lc.attach(tiny(architecture), "thanora", calibration=calibration)
    perturb(model)
    folder = lc.export_lora(model, tmp_path / "lora")
    case = {"architecture": architecture, "changes": {}, "folder": str(folder), "merged": False}
    (tmp_path / "cases.json").write_text(json.dumps({"exported": case}))
    paths = [str(tmp_path / name) for name in ("cases.json", "logits.safetensors")]
    command = [sys.executable, "-m", "tests.integration.load_with_peft_alone", *paths]
    finished = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    torch.testing.assert_close(load_file(paths[1])["exported"], logits(model), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits(lc.merge(model)), logits(model), rtol=1e-4, atol=1e-5)
    # r - r_c ranks of the tasks twice, for their start goes with them.
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 5 + 4


def test_more_than_eight_tasks() -> None:
    tasks = [f"task {index}" for index in range(10)]
    batches = {task: [{"input_ids": token_ids(4, 7, seed=index)}] for index, task in enumerate(tasks)}
    found = calibrate(tiny("llama"), batches, tasks=tasks, r=12)
    model = lc.attach(tiny("llama"), "thanora", calibration=found)
    adapter = next(layer for layer in model.modules() if isinstance(layer, ThanoRA))
    assert len(adapter.ranks) == 10
    assert adapter.own == 11
    assert torch.equal(logits(model), logits(tiny("llama")))


def test_modules_that_no_token_of_some_task_reaches_keep_equal_shares() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x)) if x.sum() > 0 else self.first(x)

    batches = {"a": [{"x": torch.rand(9, 6)}], "b": [{"x": -torch.rand(9, 6)}]}
    found = calibrate(Gated(), batches, target_modules=["first", "second"], temperature=0.01)
    assert set(found.found["ranks"]) == {"first"}
    model = lc.attach(Gated(), "thanora", calibration=found)
    second = model.get_base_model().second.lorachord_adapter["default"]
    assert second.ranks == (2, 2)
    x = torch.rand(9, 6)
    assert torch.equal(model(x), Gated()(x))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batches": {"a": inputs()["a"]}}, "no batches of the task 'b'"),
        ({"batches": {**inputs(), "c": []}}, "no task 'c'"),
        ({"batches": {**inputs(), "b": []}}, "The task 'b' has no batches"),
        ({"rr": 6}, "no option 'rr'"),
        (
            {"r": 1},
            "layers.0.self_attn.q_proj: thanora has one rank for each task.*r = 1 is too small, the smallest is 2",
        ),
        ({"r": 64}, "q_proj: the tasks' ranks add up to 43, .*weight .16, 16., which has 16: take a smaller r"),
        ({"target_modules": ["q_prj"]}, "q_proj"),
    ],
)
def test_bad_input_is_refused_in_words(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibrate(tiny("llama"), **settings)


def test_too_many_ranks_are_refused_before_anything_is_computed() -> None:
    base = tiny("llama")
    base.register_forward_pre_hook(lambda *_: pytest.fail("the model was run"))
    with pytest.raises(ValueError, match=r"q_proj: the tasks' ranks add up to 20, .*which has 16"):
        calibrate(base, r=29)


def test_what_is_not_fitted_to_tasks_is_not_calibrated() -> None:
    with pytest.raises(ValueError, match="lora needs no calibration: attach it as it is"):
        lc.calibrate(tiny("llama"), "lora", tasks=TASKS, batches=inputs())


def test_a_calibration_serves_only_what_it_was_made_for(tmp_path: Path) -> None:
    found = calibrate(tiny("llama"))
    for keywords, message in (
        ({"tasks": ["b", "a"]}, "for the tasks a, b, in this order, not for b, a"),
        ({"r": 8}, "was made with r = 6, not 8: calibrate again"),
        ({"target_modules": ["q_proj"]}, "target_modules = None, not .'q_proj'.: calibrate again"),
        ({"ranks": [2, 2]}, r"ranks = \[\], not \[2, 2\]"),
    ):
        with pytest.raises(ValueError, match=message):
            lc.attach(tiny("llama"), "thanora", calibration=found, **keywords)
    with pytest.raises(ValueError, match="for thanora, not for lora"):
        lc.attach(tiny("llama"), "lora", calibration=found)
    base = tiny("llama", seed=1)
    with pytest.raises(ValueError, match=r"The calibration was made for another base model: .* other weights"):
        lc.attach(base, "thanora", calibration=found)
    assert not any(isinstance(module, LorachordLinear) for module in base.modules())
    with pytest.raises(ValueError, match=r"holds no calibration, which would be calibration\.json"):
        lc.Calibration.load(tmp_path)
    # What it does not depend on may be chosen at the end; the start follows the scale.
    model = lc.attach(tiny("llama"), "thanora", calibration=found, spr=0.0, dropout=0.1, alpha=4)
    assert not lc.penalty(model).requires_grad
    first = next(layer for layer in model.modules() if isinstance(layer, LorachordLinear))
    adapter = first.lorachord_adapter["default"]
    basis = adapter.up_start / adapter.up_start.norm(dim=0)
    start = adapter.scale * adapter.up_start @ adapter.down_start
    torch.testing.assert_close(start, basis @ basis.T @ first.get_base_layer().weight)


def test_ranks_that_are_given_are_kept() -> None:
    ranks = {"model.layers.0.self_attn.q_proj": [1, 4]}
    found = calibrate(tiny("llama"), ranks=ranks)
    model = lc.attach(tiny("llama"), "thanora", calibration=found)
    adapters = {adapter.layer.name: adapter for adapter in model.modules() if isinstance(adapter, ThanoRA)}
    assert adapters["model.layers.0.self_attn.q_proj"].ranks == (1, 4)
    assert adapters["model.layers.0.self_attn.k_proj"].ranks == (2, 2)
    assert torch.equal(logits(model), logits(tiny("llama")))


def test_without_a_calibration_attach_says_how_to_get_one() -> None:
    with pytest.raises(ValueError, match=r"calibration=lorachord\.calibrate.*allocation='uniform', init='kaiming'"):
        lc.attach(tiny("llama"), "thanora", tasks=TASKS)
    lc.attach(tiny("llama"), "thanora", tasks=TASKS, allocation="uniform", init="kaiming")


def test_options_that_name_other_modules_are_refused() -> None:
    options = {"allocation": "uniform", "init": "kaiming", "ranks": {"model.layers.0.self_attn.q_prj": [2, 2]}}
    with pytest.raises(ValueError, match=r"name 'model.layers.0.self_attn.q_prj', which is no adapted module.*q_proj"):
        lc.attach(tiny("llama"), "thanora", tasks=TASKS, **options)
