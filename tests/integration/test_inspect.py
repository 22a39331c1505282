"""`lorachord inspect` and `lc.inspect` on runs of every kind, on adapters, and on what is none of these."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lorachord as lc
from lorachord.runs.inspect import Beside, Conflicts, Inspection, Interference, Overlap, Routing, Spectra, TaskRanks
from lorachord.runs.train import train
from lorachord_cli import main
from tests.integration.helpers import adapted
from tests.tiny_data import recipe
from tests.tiny_models import tiny, token_ids

TASKS = ("colour", "size")
LAYERS = 13
"""Linear layers of the tiny encoder: six in each of two blocks, and the pooler's."""
METHODS: dict[str, dict[str, Any]] = {
    "hydralora": {"r": 2, "num_experts": 2},
    "mosld": {"r": 2},
    "mode": {"r": 2, "num_experts": 2},
    "malora": {"r": 2, "num_experts": 3},
    "moelora": {"r": 2, "num_experts": 3},
    "mixlora": {"r": 2, "num_experts": 4},
    "mor1e": {"r1": 2, "r2": 2},
}
SHORT = {"max_steps": 3}


@pytest.fixture(scope="module")
def runs(tiny_bert: Path, task_files: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each kind, by its name."""
    folder = tmp_path_factory.mktemp("runs")
    kinds: dict[str, dict[str, Any]] = {
        "lora": {"training": SHORT},
        "multilora": {"method": {"name": "multilora", "r": 2, "num_loras": 2}, "training": SHORT},
        "mtl_lora": {"method": {"name": "mtl_lora", "r": 2, "num_ups": 2}, "training": SHORT},
        "thanora": {"method": {"name": "thanora", "r": 6}, "training": SHORT},
        "surgery": {"surgery": {"rule": "ortho_lora"}, "training": {"max_steps": 4}},
        "single": {"mode": "single", "training": SHORT},
    }
    return {
        name: train(recipe(tiny_bert, *TASKS, **parts), folder / name, data_dir=task_files).path
        for name, parts in kinds.items()
    }


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main(["inspect", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main(["inspect", *map(str, arguments)]) == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("name", ["lora", "multilora", "mtl_lora", "thanora", "surgery", "single"])
def test_tables_have_at_most_80_columns_and_arrays_are_saved(
    runs: dict[str, Path], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Paths are not broken.
    told = printed(capsys, runs[name], "--max-rows", 6, "--out", tmp_path / "arrays")
    assert not [line for line in told.splitlines() if len(line) > 80 and "/" not in line]
    saved = json.loads((tmp_path / "arrays" / "inspect.json").read_text())
    assert saved["tasks"] == list(TASKS)
    assert {path.stem for path in (tmp_path / "arrays").glob("*.npz")} == saved["figures"].keys()
    for figure, own in saved["figures"].items():
        assert own["words"] in " ".join(told.split())
        assert own["meaning"] in " ".join(told.split())
        with np.load(tmp_path / "arrays" / f"{figure}.npz") as arrays:
            assert all(arrays[key].size for key in arrays)
    wanted = {
        "lora": {"spectra", "interference"},
        "multilora": {"spectra", "interference"},
        "mtl_lora": {"spectra", "overlap", "interference"},
        "thanora": {"spectra", "task_ranks", "interference"},
        "surgery": {"spectra", "conflicts", "interference"},
        "single": {"spectra", "overlap"},
    }
    assert saved["figures"].keys() == wanted[name]
    assert all(reason in " ".join(told.split()) for reason in saved["absent"].values())


def test_json_is_the_same_in_numbers(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads(printed(capsys, runs["mtl_lora"], "--max-rows", 0, "--json"))
    assert told == lc.inspect(runs["mtl_lora"], max_rows=0).to_dict()
    assert told["figures"]["overlap"]["values"]["inputs"][0][0] == pytest.approx(1)
    assert told["absent"]["interference"] == "No rows were to be read, and interference needs some."


def test_spectra_are_of_the_update_that_merging_adds(runs: dict[str, Path]) -> None:
    from lorachord.core.matrix import delta
    from lorachord.runs.use import load_run
    from tests.integration.helpers import layers

    found = lc.inspect(runs["mtl_lora"], max_rows=0)["spectra"]
    assert isinstance(found, Spectra)
    assert found.owners == TASKS
    for path, layer in layers(load_run(runs["mtl_lora"])[0].get_base_model()).items():
        for task in range(2):
            values = np.linalg.svd(delta(layer.lorachord_adapter["default"], task).numpy(), compute_uv=False)
            assert found.values[task, found.layers.index(path)] == pytest.approx(values[:2], rel=1e-3, abs=1e-9)
    assert len(found.layers) == LAYERS


def test_multilora_stands_beside_lora(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    found = lc.inspect(runs["multilora"], against=runs["lora"], max_rows=0)["beside"]
    assert isinstance(found, Beside)
    for row, name in enumerate(("multilora", "lora")):
        own = lc.inspect(runs[name], max_rows=0)["spectra"]
        assert isinstance(own, Spectra)
        assert found.top_share[row].tolist() == own.top_share()[0].tolist()
    assert "Singular values, beside another adapter" in printed(
        capsys, runs["multilora"], "--against", runs["lora"], "--max-rows", 0
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_every_routed_run_shows_its_experts(
    method: str, kind: str, request: pytest.FixtureRequest, task_files: Path, tmp_path: Path
) -> None:
    base = request.getfixturevalue("tiny_bert" if kind == "encoder" else "tiny_llama")
    made = recipe(base, *TASKS, kind=kind, method={"name": method, **METHODS[method]}, training=SHORT)
    run = train(made, tmp_path / "run", data_dir=task_files).path
    inspection = lc.inspect(run, max_rows=8)
    found = inspection["routing"]
    assert isinstance(found, Routing)
    assert found.tasks == TASKS
    assert len(found.layers) >= LAYERS
    used = np.nansum(found.usage, axis=-1)
    assert used[~np.isnan(found.usage[..., 0])] == pytest.approx(1, abs=1e-4)
    assert f"{method} has another update for every input" in inspection.absent["spectra"]
    assert not [line for line in inspection.text().splitlines() if len(line) > 80 and "/" not in line]
    assert isinstance(inspection["interference"], Interference)


def test_single_runs_overlap_and_have_no_gradients_that_met(runs: dict[str, Path]) -> None:
    inspection = lc.inspect(runs["single"])
    found = inspection["overlap"]
    assert isinstance(found, Overlap)
    assert found.shares.shape == (LAYERS, 2, 2, 2)
    assert inspection.absent == {"conflicts": "Each task was trained alone, so no gradients of tasks met."}


def test_the_figures_of_surgery_and_calibration_are_the_runs_own(runs: dict[str, Path]) -> None:
    from lorachord.surgery.watch import read

    found = lc.inspect(runs["surgery"], max_rows=0)["conflicts"]
    assert isinstance(found, Conflicts)
    watched = read(runs["surgery"] / "surgery")
    assert found.steps.tolist() == watched.steps.tolist() == [1, 2, 3, 4]
    for block, (name, factor) in enumerate(watched.keys):
        own = found.negative[:, found.layers.index(name), ("down", "up").index(factor)]
        assert own.tolist() == pytest.approx(watched.negative[:, block].tolist(), nan_ok=True)
    ranks = lc.inspect(runs["thanora"], max_rows=0)["task_ranks"]
    assert isinstance(ranks, TaskRanks)
    assert ranks.ranks.sum(1).tolist() == [4] * LAYERS


def test_a_fused_adapter_shows_its_update_and_its_mask(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["fuse", str(runs["single"]), "--out", str(tmp_path / "fused"), "--max-rows", "8", "--method"]
    assert main([*command, "concrete", "--set", "steps=2", "--set", "learning_rate=.5"]) == 0
    found = lc.inspect(tmp_path / "fused")
    density = json.loads((tmp_path / "fused" / "fusion.json").read_text())["notes"]["mask_density"]
    assert found["masks"].summary()["density"] == density
    assert found.figures.keys() == {"spectra", "masks"}
    assert "Density of the Concrete mask" in printed(capsys, tmp_path / "fused")
    command[3] = str(tmp_path / "average")
    assert main([*command, "average"]) == 0
    assert lc.inspect(tmp_path / "average").absent == {
        "masks": "Only Concrete fusion learns a mask: fuse with --method concrete."
    }


def test_exports_show_what_their_run_shows(runs: dict[str, Path], tmp_path: Path) -> None:
    assert main(["export", str(runs["mtl_lora"]), "--out", str(tmp_path / "loras")]) == 0
    found, own = lc.inspect(tmp_path / "loras"), lc.inspect(runs["mtl_lora"], max_rows=0)
    for name, key in (("spectra", "values"), ("overlap", "shares")):
        left, right = found[name].arrays(), own[name].arrays()
        assert sorted(left["layers"]) == sorted(right["layers"])
        for layer in left["layers"]:
            there, here = (np.moveaxis(each[key], int(name == "spectra"), 0) for each in (left, right))
            there, here = there[left["layers"] == layer], here[right["layers"] == layer]
            assert there == pytest.approx(here, rel=1e-3, abs=1e-6)
    assert found.tasks == TASKS
    alone = lc.inspect(tmp_path / "loras" / "size")["spectra"]
    assert isinstance(alone, Spectra)
    assert alone.owners == ("all",)
    assert lc.inspect(runs["lora"] / "adapter", max_rows=0).of == str(runs["lora"])


# What is missing is a sentence


def test_what_is_no_adapter_is_refused(runs: dict[str, Path], tmp_path: Path, capsys: Any, task_files: Path) -> None:
    assert "is no run, no fused adapter and no LoRA; it is empty or missing" in refused(capsys, tmp_path / "nowhere")
    assert "it holds choice, colour, echo" in refused(capsys, task_files)
    assert "no run, no fused adapter and no LoRA" in refused(capsys, runs["lora"].parent)
    adapter = shutil.copytree(runs["lora"] / "adapter", tmp_path / "adapter")
    assert "does not say its updates without its base" in refused(capsys, adapter)
    run = Path(shutil.copytree(runs["lora"], tmp_path / "run"))
    (run / "metrics.json").unlink()
    assert "is not finished" in refused(capsys, run)
    assert "max_rows is -1" in refused(capsys, runs["lora"], "--max-rows", -1)
    with pytest.raises(ValueError, match="Expected a PeftModel"):
        lc.inspect(tiny("llama"))  # type: ignore[arg-type]


def test_a_run_without_surgery_rows_or_steps_says_so(
    runs: dict[str, Path], tiny_bert: Path, task_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = " ".join(printed(capsys, runs["lora"], "--data", tmp_path).split())
    assert "The run had no surgery, so it wrote down no gradients of tasks" in told
    assert "Without the run's rows there is no interference:" in told
    untrained = train(recipe(tiny_bert, *TASKS, training={"max_steps": 0}), tmp_path / "run", data_dir=task_files)
    assert "The updates are zero: nothing was trained." in printed(capsys, untrained.path, "--max-rows", 0)
    surgery = Path(shutil.copytree(runs["surgery"], tmp_path / "surgery"))
    shutil.rmtree(surgery / "surgery")
    assert "holds no steps of surgery" in printed(capsys, surgery, "--max-rows", 0)


# A model in memory


def test_a_model_in_memory_is_looked_at_as_a_run() -> None:
    found = lc.inspect(adapted("llama", "mtl_lora"))
    assert found.figures.keys() == {"spectra", "overlap"}
    assert found.tasks == ("a", "b")
    routed = lc.inspect(adapted("llama", "hydralora"))
    assert "give batches={task: [inputs, ...]}" in routed.absent["routing"]
    with pytest.raises(ValueError, match="Routing needs rows"):
        _ = routed["routing"]
    model = adapted("llama", "mixlora", tasks=["a", "b"])
    batches = {task: [{"input_ids": token_ids(seed=seed)}] for seed, task in enumerate("ab")}
    assert isinstance(lc.inspect(model, batches=batches)["routing"], Routing)


def test_pefts_own_adapters_have_a_spectrum_unless_they_are_no_update() -> None:
    for method in ("peft_lora", "peft_dora"):
        found: Inspection = lc.inspect(lc.attach(tiny("llama"), method, r=2))
        assert found.method == "lora"
        assert ("DoRA" in found.absent.get("spectra", "")) == (method == "peft_dora")
