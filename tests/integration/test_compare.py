"""`lorachord compare` with real trials of a tiny encoder: a result, a way to go on, refusals before any training."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import lorachord as lc
from lorachord.runs.compare.comparison import load_results
from lorachord.runs.compare.plan import make_plan
from lorachord.runs.compare.results import results
from lorachord.runs.compare.sweep import SweepFolder, run_sweep
from lorachord.runs.compare.tables import as_csv, as_markdown, terminal
from lorachord.runs.compare.trial import run_trial
from lorachord.runs.compare.workers import RayCluster, Spec, Workers
from lorachord.runs.folder import RunFolder
from lorachord.runs.recipe import Recipe
from lorachord.runs.strict import dump_yaml
from lorachord.runs.use import predictions
from lorachord_cli import main
from tests.tiny_data import recipe, tree

TASKS = ("colour", "size")
PARTS: dict[str, Any] = {"training": {"max_steps": 4}, "method": {"name": "lora", "r": 5}}


class Here(Workers):
    """Trials one after the other in this process, which a test can watch."""

    size = 1

    def __init__(self, most: int = 1000) -> None:
        self.ran: list[str] = []
        self.most = most

    def submit(self, spec: Spec) -> Future[dict[str, Any]]:
        if len(self.ran) == self.most:
            raise KeyboardInterrupt
        future: Future[dict[str, Any]] = Future()
        self.ran.append(spec["trial"]["row"])
        future.set_result(run_trial(spec))
        return future

    def stop(self) -> None:
        raise AssertionError

    def close(self) -> None:
        raise AssertionError

    def died(self, error: BaseException) -> bool:
        return False


@pytest.fixture(scope="module")
def base(tiny_bert: Path) -> Recipe:
    return recipe(tiny_bert, *TASKS, **PARTS)


def sweep(base: Recipe, data: Path, out: Path, workers: Workers, **how: Any) -> dict[str, Any]:
    how = {"seeds": 2, "rates": (1e-2,), **how}
    methods = how.pop("methods", ["mtl_lora"])
    folder, plan = SweepFolder(out), make_plan(base, methods, data_dir=data, **how)
    state = folder.begin(plan)
    run_sweep(folder, state, workers)
    return results(state)


@pytest.fixture(scope="module")
def made(base: Recipe, task_files: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("compare") / "out"
    return out, sweep(base, task_files, out, Here())


def without_time(found: dict[str, Any]) -> dict[str, Any]:
    return {
        **found,
        "rows": [
            {key: value for key, value in row.items() if key not in ("seconds", "memory")} for row in found["rows"]
        ],
    }


def test_each_trial_keeps_its_run_and_the_result_has_every_row(made: tuple[Path, dict[str, Any]]) -> None:
    out, found = made
    names = [row["name"] for row in found["rows"]]
    standing = ["untrained", "lora", "lora+name", "single", "lora, high rank", "mtl_lora"]
    assert names == [*standing, "front: colour x4", "front: size x4"]
    assert not found["unfinished"]
    assert (out / "trials/mtl_lora/0.01/seed1/adapter").is_dir()
    row = found["rows"][names.index("mtl_lora")]
    records = [predictions(out / f"trials/mtl_lora/0.01/seed{seed}") for seed in (0, 1)]
    right = [sum(each["prediction"] == each["label"] for each in run["colour"]) / 24 for run in records]
    assert row["scores"]["colour"] == pytest.approx(sum(right) / 2)


def test_rows_have_equal_parameters_but_for_the_one_of_high_rank(made: tuple[Path, dict[str, Any]]) -> None:
    out, found = made
    for row in found["rows"]:
        # The layers are 16 wide, so that four times a rank of 5 is not to be had.
        expected = {"untrained": 0.0, "lora, high rank": 16 / 5}.get(row["name"], 1.0)
        assert row["share"] == pytest.approx(expected, rel=0.02)
    tensors = load_file(out / "trials/mtl_lora/0.01/seed0/adapter/adapter_model.safetensors")
    counted = sum(tensor.numel() for name, tensor in tensors.items() if "lorachord_" in name and "digest" not in name)
    assert counted == next(row["parameters"] for row in found["rows"] if row["name"] == "mtl_lora")


def test_a_comparison_that_was_broken_off_goes_on_and_ends_alike(
    made: tuple[Path, dict[str, Any]], base: Recipe, task_files: Path, tmp_path: Path
) -> None:
    ran = []
    for most in (3, 4, 1000):
        workers = Here(most)
        try:
            found = sweep(base, task_files, tmp_path / "out", workers)
        except KeyboardInterrupt:
            found = {}
        ran += workers.ran
    assert without_time(found) == without_time(made[1])
    # No trial ran twice.
    assert len(ran) == len((tmp_path / "out" / "trials.jsonl").read_text().splitlines())


def test_it_goes_on_from_its_small_files_alone(
    made: tuple[Path, dict[str, Any]], base: Recipe, task_files: Path, tmp_path: Path
) -> None:
    for name in ("sweep.json", "examples.json", "trials.jsonl"):
        text = (made[0] / name).read_text()
        # The last trial is lost, in the middle of its line.
        (tmp_path / name).write_text(text[:-40] if name == "trials.jsonl" else text)
    assert load_results(tmp_path)["unfinished"] or len(load_results(tmp_path)["rows"]) < len(made[1]["rows"])
    workers = Here()
    found = sweep(base, task_files, tmp_path, workers)
    assert len(workers.ran) == 1
    assert without_time(found) == without_time(made[1])


def test_what_python_gives_back_shows_itself(
    made: tuple[Path, dict[str, Any]], base: Recipe, task_files: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(made[0], tmp_path / "out"))
    how: dict[str, Any] = {"seeds": 2, "rates": [1e-2], "data_dir": task_files, "jobs": 1}
    # All trials are there, so that nothing is trained.
    found = lc.compare(base, ["mtl_lora"], out, **how)
    assert found.result == made[1]
    assert found.verdict == lc.load_comparison(out).verdict
    assert "differences" in found.drawings
    with pytest.raises(ValueError, match="There is no recipe"):
        lc.compare(tmp_path / "recipes.yaml", ["mtl_lora"], out, **how)


def test_a_sequence_stands_beside_joint_and_fused_lora_with_its_loss(
    base: Recipe, task_files: Path, tmp_path: Path
) -> None:
    folder = SweepFolder(tmp_path / "out")
    methods = ["mtl_lora+sequence", "mtl_lora"]
    plan = make_plan(replace(base, mode="sequence"), methods, data_dir=task_files, seeds=2, rates=(1e-2,))
    state, workers = folder.begin(plan), Here()
    run_sweep(folder, state, workers)
    found = results(state)
    rows = {row["name"]: row for row in found["rows"]}
    assert rows.keys() >= {"lora", "lora+sequence", "lora+fused", "single", "mtl_lora", "mtl_lora+sequence"}
    assert not [name for name in rows if name.startswith("front")]
    assert rows["mtl_lora+sequence"]["loss_of_earlier_tasks"] == 0.0
    assert rows["lora"]["loss_of_earlier_tasks"] is None
    runs = [RunFolder.open(tmp_path / f"out/trials/lora+sequence/0.01/seed{seed}") for seed in (0, 1)]
    lost = [run.metrics["loss_of_earlier_tasks"]["mean"] for run in runs]
    assert rows["lora+sequence"]["loss_of_earlier_tasks"] == pytest.approx(sum(lost) / 2)
    assert "mtl_lora+sequence: loss of earlier tasks 0.000" in terminal(found)
    assert ",loss of earlier tasks," in as_csv(found).splitlines()[0]
    # It goes on, and nothing runs again.
    again = Here()
    run_sweep(folder, folder.begin(plan), again)
    assert not again.ran


def small_files(out: Path, folder: Path) -> Path:
    folder.mkdir()
    for name in ("sweep.json", "examples.json", "trials.jsonl"):
        (folder / name).write_text((out / name).read_text())
    return folder


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"seeds": 1}, "seeds"),
        ({"rates": (1e-3,)}, "rates"),
        ({"methods": ["mtl_lora[num_ups=1]"]}, "rows.mtl_lora"),
        ({"claims": ["mtl_lora:lora"]}, r"claims.lora\+name:lora"),
        ({"effect": 0.1}, "effect"),
    ],
)
def test_a_plan_that_takes_something_away_is_refused_in_the_same_folder(
    how: dict[str, Any], said: str, made: tuple[Path, dict[str, Any]], base: Recipe, task_files: Path
) -> None:
    before = (made[0] / "sweep.json").read_text()
    with pytest.raises(ValueError, match=rf"comparison of another plan(.|\n)*{said}"):
        sweep(base, task_files, made[0], Here(), **how)
    assert (made[0] / "sweep.json").read_text() == before


def test_methods_and_seeds_may_be_added(
    made: tuple[Path, dict[str, Any]], base: Recipe, task_files: Path, tmp_path: Path
) -> None:
    out = small_files(made[0], tmp_path / "out")
    workers, methods = Here(), ["mtl_lora", "mtl_lora[num_ups=1]"]
    found = sweep(base, task_files, out, workers, methods=methods)
    assert workers.ran == ["mtl_lora[num_ups=1]"] * 2
    old = {row["name"]: row for row in made[1]["rows"]}
    assert all(row["scores"] == old[row["name"]]["scores"] for row in found["rows"] if row["name"] in old)
    assert len(found["claims"]) == len(made[1]["claims"]) + 1
    workers = Here()
    grown = sweep(base, task_files, out, workers, methods=methods, seeds=3)
    # One more of each trained row; points of the front that are not the best have one seed.
    trained = [row for row in grown["rows"] if row["name"] != "untrained" and not row["name"].startswith("front")]
    assert {row["name"] for row in trained} <= set(workers.ran)
    assert all(len(row["by_seed"]) == 3 for row in trained)
    assert len(workers.ran) == len(set(workers.ran))


def test_the_result_of_an_earlier_version_is_shown(made: tuple[Path, dict[str, Any]]) -> None:
    # Before sequences were compared, rows had no such figure.
    rows = [{key: row[key] for key in row if key != "loss_of_earlier_tasks"} for row in made[1]["rows"]]
    early = {**made[1], "rows": rows}
    assert terminal(early) == terminal(made[1])
    assert as_markdown(early) == as_markdown(made[1])


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main(["compare", *map(str, arguments)]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", "mtl_lor"], "Did you mean 'mtl_lora'"),
        (["--methods", "mtl_lora", "--claims", "mtl_lora:mtl"], "claim 'mtl_lora:mtl' names 'mtl'"),
        (["--methods", "mtl_lora", "--seeds", "0"], "--seeds is 0"),
        (["--methods", "mtl_lora", "--rates", "fast"], "--rates takes numbers"),
        (["--methods", "mtl_lora", "--time", "soon"], "--time takes a number"),
        (["--methods", "mtl_lora[r=9]"], "meets no budget"),
        (["--methods", "mtl_lora", "--set", "mode=single"], "leave out mode"),
        (["--methods", "mtl_lora", "--set", "surgery={rule: ortho_lora}"], "leave out mode, surgery"),
        (["--methods", "mtl_lora", "--weights", "1,2"], "--weights takes different numbers above 0"),
        (["--methods", "lora+sequenc"], "Did you mean 'sequence'"),
        (["--methods", "mtl_lora", "--jobs", "0"], "--jobs is 0"),
        (["--methods", "mtl_lora", "--ray", "127.0.0.1:1"], "Ray"),
    ],
)
def test_bad_input_is_said_before_any_training(
    options: list[str],
    message: str,
    tiny_bert: Path,
    task_files: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = tree(tiny_bert, *TASKS, **{**PARTS, "method": {"name": "lora", "r": 5}})
    (tmp_path / "recipe.yaml").write_text(dump_yaml(made))
    out = tmp_path / "out"
    said = refused(capsys, tmp_path / "recipe.yaml", "--data", task_files, "--out", out, *options)
    assert message in said
    assert not out.exists() or not (out / "trials.jsonl").exists()


def command(tiny_bert: Path, data: Path, folder: Path) -> list[str]:
    (folder / "recipe.yaml").write_text(dump_yaml(tree(tiny_bert, *TASKS, **PARTS)))
    asked = ["--methods", "mtl_lora", "--seeds", "2", "--rates", "1e-2", "--jobs", "2", "--out", str(folder / "out")]
    return [sys.executable, "-m", "lorachord_cli", "compare", str(folder / "recipe.yaml"), "--data", str(data), *asked]


@pytest.mark.slow
def test_a_comparison_killed_at_random_ends_as_the_unbroken_one(
    made: tuple[Path, dict[str, Any]], tiny_bert: Path, task_files: Path, tmp_path: Path
) -> None:
    asked = command(tiny_bert, task_files, tmp_path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for seconds in (14, 17, 22):
        with subprocess.Popen(asked, env=environment, start_new_session=True) as process:
            time.sleep(seconds)
            process.send_signal(signal.SIGKILL)
    ended = subprocess.run(asked, env=environment, check=False)
    assert ended.returncode == 0
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert without_time(found) == without_time(json.loads(json.dumps(made[1])))


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(tiny_bert: Path, task_files: Path, tmp_path: Path) -> None:
    asked = command(tiny_bert, task_files, tmp_path)
    with subprocess.Popen(asked, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        time.sleep(18)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "the same command goes on" in said
    assert "Traceback" not in said
    assert subprocess.run(asked, check=False).returncode == 0


@pytest.mark.slow
def test_a_cluster_that_loses_a_node_gives_the_same_result(
    made: tuple[Path, dict[str, Any]],
    base: Recipe,
    task_files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("ray", reason="comparisons on a cluster need Ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    workers = RayCluster(cluster.address, 2, 1)
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if len(said) == 3:
            cluster.remove_node(nodes[0], allow_graceful=False)

    try:
        (tmp_path / "token").touch()
        workers.check_folder(str(tmp_path), "token")
        folder = SweepFolder(tmp_path / "out")
        plan = make_plan(base, ["mtl_lora"], data_dir=task_files, seeds=2, rates=(1e-2,))
        state = folder.begin(plan)
        assert run_sweep(folder, state, workers, say=say)
        assert without_time(results(state)) == without_time(made[1])
    finally:
        workers.close()
        cluster.shutdown()


@pytest.mark.slow
def test_a_folder_that_a_node_does_not_see_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="comparisons on a cluster need Ray")
    workers = RayCluster("local", 1, 1)
    try:
        (tmp_path / "token").touch()
        workers.check_folder(str(tmp_path), "token")
        with pytest.raises(ValueError, match=r"does not see .*name a folder that all share"):
            workers.check_folder(str(tmp_path), "other")
    finally:
        workers.close()
