"""Recipes: what they hold, what they refuse, and those that come with the package."""

from pathlib import Path
from typing import Any

import pytest

import lorachord as lc
from lorachord.baselines import BASELINES, BaselineConfig, baseline_config
from lorachord.runs.arguments import mixture_of
from lorachord.runs.listing import method_rows
from lorachord.runs.recipe import Recipe, read_recipe, recipe_from
from lorachord.runs.strict import load_yaml
from tests.tiny_data import own, tree

RECIPES = Path(__file__).parents[3] / "recipes"
PACKAGED = sorted(RECIPES.rglob("*.yaml"))
MODEL = Path("tiny/bert")
LAB = {"name": "lab-contradiction", "num_train": 40, "num_dev": 1000}


def names_of(recipe: Recipe) -> list[str]:
    return [task.name for task in recipe.tasks.chosen()]


def refused(**parts: Any) -> str:
    with pytest.raises(ValueError, match=r"^the recipe:\n") as caught:
        recipe_from(tree(MODEL, "colour", "size", **parts))
    return str(caught.value).removeprefix("the recipe:\n  ")


def through_yaml(recipe: Recipe) -> Recipe:
    return recipe_from(load_yaml(recipe.to_yaml(), "yaml"))


# Round trips

FULL = tree(
    MODEL,
    "colour",
    "size",
    "number",
    "choice",
    model={"heads": "shared", "dtype": "bfloat16", "gguf_file": None},
    method={"name": "mosld", "r": [2, 4], "num_experts": [2, 4, 6, 8], "alpha": 3.5, "target_modules": ["query"]},
    tasks={"only": ["size", "colour"], "max_rows": 7, "weights": {"size": 2, "colour": 0.125}, "seed": 3},
    mixture={"sampling": "temperature", "temperature": 1e-5, "batches": "one_task"},
    training={"schedule": "cosine", "warmup": 0, "accumulation": 4, "eval_every": 2, "patience": 3, "save_every": 9},
    evaluation={"max_rows": 3, "batch_size": 5, "max_new_tokens": 7},
    mode="single",
    seed=2**40,
)


@pytest.mark.parametrize(
    "plain",
    [
        {"model": {"name": "m", "kind": "decoder"}, "tasks": {"suite": "superni"}},
        {"model": {"name": "m", "kind": "encoder"}, "tasks": {"lab": LAB}},
        {"model": {"name": "m", "kind": "encoder"}, "tasks": {"lab": {**LAB, "name": "lab-dominance", "k": 1}}},
        tree(MODEL, "colour", "echo", "choice", kind="decoder"),
        FULL,
    ],
    ids=["suite", "lab", "dominance", "own", "full"],
)
def test_a_recipe_with_every_default_written_out_is_itself(plain: dict[str, Any]) -> None:
    recipe = recipe_from(plain)
    assert recipe_from(recipe.to_dict()) == recipe
    assert through_yaml(recipe) == recipe
    assert through_yaml(recipe).to_yaml() == recipe.to_yaml()


@pytest.mark.parametrize("labels", [("no", "yes"), ("01", "1_0"), ("null", "~"), ("été", "日")])
def test_texts_that_yaml_could_take_for_something_else_stay_texts(labels: tuple[str, str]) -> None:
    fields = {**own("colour")[0], "labels": list(labels), "prompt": "- {first}: #\n\n{options}?  "}
    recipe = recipe_from(tree(MODEL, tasks={"own": [fields]}))
    assert recipe.tasks.own[0].labels == labels
    assert through_yaml(recipe) == recipe


def test_every_default_is_written_out() -> None:
    plain = recipe_from({"model": {"name": "m", "kind": "encoder"}, "tasks": {"suite": "glue"}}).to_dict()
    assert list(plain) == [
        "model",
        "tasks",
        "method",
        "mixture",
        "training",
        "evaluation",
        "surgery",
        "balance",
        "mode",
        "seed",
        "start_from",
    ]
    assert plain["training"]["epochs"] == 3
    assert plain["training"]["max_steps"] is None
    assert plain["method"] == {"name": "lora"}
    assert plain["model"]["heads"] == "per_task"


# What is refused


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"trainig": {}}, "trainig: there is no such key. Did you mean 'training'?"),
        (
            {"training": {"learning_rat": 1}},
            "training.learning_rat: there is no such key. Did you mean 'learning_rate'",
        ),
        ({"training": {"learning_rate": 0}}, "training.learning_rate: must be greater than 0; found 0"),
        ({"training": {"learning_rate": "fast"}}, "training.learning_rate: must be a valid number; found 'fast'"),
        ({"training": {"warmup": 1}}, "training.warmup: must be less than 1; found 1"),
        ({"training": {"batch_size": 0}}, "training.batch_size: must be greater than or equal to 1; found 0"),
        ({"training": {"schedule": "line"}}, "training.schedule: must be 'linear', 'cosine' or 'constant'"),
        ({"training": {"report_to": "tensorboard"}}, "training.report_to: must be a valid"),
        ({"training": {"epochs": 2}}, "training: epochs and max_steps exclude each other"),
        ({"training": {"accumulation": 3}}, "training: batch_size 16 does not split into 3 equal batches"),
        ({"training": {"patience": 2}}, "training: patience counts evaluations on val: give eval_every"),
        ({"model": {"kind": "encodr"}}, "model.kind: must be 'encoder' or 'decoder'; found 'encodr'"),
        ({"model": {"head": "shared"}}, "model.head: there is no such key. Did you mean 'heads'?"),
        ({"mixture": {"sampling": "all"}}, "mixture.sampling: must be 'proportional', 'temperature', 'uniform' or"),
        ({"evaluation": {"max_rows": -1}}, "evaluation.max_rows: must be greater than or equal to 1; found -1"),
        ({"mode": "both"}, "mode: must be 'joint', 'single', 'sequence' or 'fused'; found 'both'"),
        ({"seed": -1}, "seed: must be greater than or equal to 0; found -1"),
        ({"method": "lora"}, "method: must be an object; found 'lora'"),
        ({"method": {"r": 4}}, "method needs a name, as in {name: mtl_lora, r: 8}."),
        ({"tasks": {"suite": "glue"}}, "tasks: give one of suite, own and lab; found suite and own."),
        ({"tasks": {"own": []}}, "tasks: give one of suite, own and lab; found none."),
        ({"tasks": {"own": [], "suite": "glu"}}, "tasks: There is no suite 'glu'. Did you mean 'glue'?"),
        ({"tasks": {"own": [], "lab": {"name": "lab"}}}, "tasks.lab.name: must be 'lab-contradiction' or"),
        ({"tasks": {"own": [], "lab": {**LAB, "cue": 2}}}, "tasks.lab.cue: must be less than or equal to 1; found 2"),
        (
            {"tasks": {"own": [], "lab": {**LAB, "name": "lab-dominance", "cue": 0.5}}},
            "tasks.lab: cue is for lab-contradiction",
        ),
        (
            {"tasks": {"own": [], "lab": {**LAB, "cue": 0.5, "num_tasks": 12}}},
            "num_tasks is 12; a cue tells at most 8 tasks apart",
        ),
        ({"tasks": {"max_rows": {"colours": 5}}}, "tasks: max_rows names 'colours', which is not among these tasks."),
        ({"tasks": {"max_rows": {"colour": 0}}}, "must be greater than or equal to 1; found 0"),
        ({"tasks": {"own": [], "lab": {**LAB, "k": 2}}}, "tasks.lab.k: must be less than or equal to 1; found 2"),
        ({"tasks": {"only": ["colors"]}}, "tasks: only names 'colors', which is not among these tasks. Did you mean"),
        ({"tasks": {"only": ["size", "size"]}}, "tasks: Task names must be unique; repeated: size"),
        ({"tasks": {"only": []}}, "tasks: No task was given"),
        ({"tasks": {"own": own("size", "size")}}, "tasks: Task names must be unique; repeated: size"),
        ({"tasks": {"weights": {"size": -1}}}, "tasks.weights.size: must be greater than or equal to 0; found -1"),
        ({"tasks": {"own": [{**own("size")[0], "kind": "pairs"}]}}, "tasks.own.0: Task 'size': there is no kind"),
        (
            {"tasks": {"own": [{**own("size")[0], "labls": []}]}},
            "tasks.own.0.labls: there is no such key. Did you mean",
        ),
        ({"tasks": {"own": [{**own("size")[0], "source": {}}]}}, "tasks.own.0.source.path: missing; give it a value."),
        (
            {"tasks": {"own": [{**own("size")[0], "source": {"path": "x", "colums": {}}}]}},
            "tasks.own.0.source.colums: there is no such key. Did you mean 'columns'",
        ),
        (
            {"tasks": {"own": [{**own("size")[0], "labels": [False, True]}]}},
            "tasks.own.0.labels.0: must be a valid str",
        ),
    ],
)
def test_what_a_recipe_cannot_hold_is_refused_with_its_path(parts: dict[str, Any], message: str) -> None:
    assert message in refused(**parts)


@pytest.mark.parametrize("key", ["learning_rate", "weight_decay", "max_grad_norm"])
def test_what_is_no_number_is_refused(key: str) -> None:
    assert f"training.{key}: " in refused(training={key: float("nan")})


def test_missing_parts_are_named() -> None:
    with pytest.raises(ValueError, match=r"(?s)model: missing.*tasks: missing"):
        recipe_from({})
    with pytest.raises(ValueError, match=r"model\.kind: missing; give it a value"):
        recipe_from({"model": {"name": "m"}, "tasks": {"suite": "glue"}})


@pytest.mark.parametrize("tree", [None, [], "lora", 3])
def test_what_is_no_mapping_is_no_recipe(tree: object) -> None:
    with pytest.raises(ValueError, match=f"^here must be a mapping with model, tasks, .*found {type(tree).__name__}"):
        recipe_from(tree, "here")


def test_a_recipe_file_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"There is no recipe .*lab2\.yaml.*commonsense_smollm2\.yaml.*lab\.yaml"):
        read_recipe(RECIPES / "lab2.yaml")
    with pytest.raises(ValueError, match=r"no \.yaml file"):
        read_recipe(tmp_path / "nowhere" / "x.yaml")
    with pytest.raises(ValueError, match="There is no recipe"):
        read_recipe(tmp_path)


def test_a_recipe_file_that_is_no_utf8_or_no_yaml_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes("model: {name: é}".encode("latin1"))
    with pytest.raises(ValueError, match=r"bad\.yaml is not UTF-8 .*save it as UTF-8"):
        read_recipe(path)
    for text, message in (("a: [", "bad.yaml: "), ("seed: 1\nseed: 2", "repeated key seed"), ("", "found NoneType")):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=rf"bad\.yaml.*{message}" if message[0] != "b" else message):
            read_recipe(path)


# What it decides


def test_settings_change_a_recipe_that_is_then_checked(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_from(tree(MODEL, "colour", "size")).to_yaml(), encoding="utf-8")
    recipe = read_recipe(path, ["training.learning_rate=1e-4", "method.r=16", "tasks.only=[size]", "seed=5"])
    assert (recipe.training.learning_rate, recipe.method, recipe.seed) == (1e-4, {"name": "lora", "r": 16}, 5)
    assert names_of(recipe) == ["size"]
    recipe = read_recipe(path, ["training.max_steps=null", "training.epochs=2"])
    assert (recipe.training.epochs, recipe.training.max_steps) == (2, None)
    with pytest.raises(ValueError, match=r"training\.steps: there is no such key\. Did you mean 'max_steps'"):
        read_recipe(path, ["training.steps=3"])


def test_only_takes_tasks_in_its_own_order_and_max_rows_is_for_each() -> None:
    part = recipe_from(
        tree(MODEL, "colour", "size", "number", tasks={"only": ["number", "colour"], "max_rows": 9})
    ).tasks
    assert [(task.name, task.max_rows) for task in part.chosen()] == [("number", 9), ("colour", 9)]


def test_max_rows_by_task_leaves_the_others_as_they_are() -> None:
    fields = own("colour", "size", "number")
    fields[1]["max_rows"] = 7
    tasks = {"own": fields, "max_rows": {"number": 5, "colour": 3}}
    recipe = recipe_from({"model": {"name": "m", "kind": "encoder"}, "tasks": tasks})
    assert [task.max_rows for task in recipe.tasks.chosen()] == [3, 7, 5]
    # Of a run of one task alone, the others' numbers stay.
    alone = recipe_from({"model": {"name": "m", "kind": "encoder"}, "tasks": {**tasks, "only": ["size"]}})
    assert [task.max_rows for task in alone.tasks.chosen()] == [7]
    assert recipe_from(recipe.to_dict()) == recipe


def test_the_lab_is_generated_from_its_part() -> None:
    cued = recipe_from({"model": {"name": "m", "kind": "encoder"}, "tasks": {"lab": {**LAB, "cue": 0.5}}}).tasks.lab
    assert cued is not None
    assert cued.generate().cue == 0.5
    recipe = recipe_from({"model": {"name": "m", "kind": "encoder"}, "tasks": {"lab": {**LAB, "num_tasks": 2}}})
    lab = recipe.tasks.lab
    assert lab is not None
    made = lab.generate()
    assert names_of(recipe) == [task.name for task in made.tasks]
    assert len(made.tasks) == 2
    assert all(len(rows) == 1000 for rows in made.dev)


def test_batches_are_split_for_accumulation_and_an_epoch_is_rounded_up() -> None:
    mixture = mixture_of(recipe_from(tree(MODEL, "colour", "size", training={"accumulation": 4})), [13, 4])
    assert [len(batch) for batch in mixture] == [4] * 5


# The recipes that come with it


@pytest.mark.parametrize("path", PACKAGED, ids=lambda path: path.stem)
def test_a_packaged_recipe_is_valid_and_its_methods_options_are_known(path: Path) -> None:
    recipe = read_recipe(path)
    options = {key: value for key, value in recipe.method.items() if key != "name"}
    if recipe.method["name"] in BASELINES:
        baseline_config(recipe.method["name"], **options)
    else:
        lc.LorachordConfig.build(recipe.method["name"], tasks=names_of(recipe), **options)
    assert through_yaml(recipe) == recipe


def test_there_are_packaged_recipes() -> None:
    assert {"lab", "glue_minilm", "commonsense_smollm2"} <= {path.stem for path in PACKAGED}


# Other tests register methods of their own.
PACKAGED_METHODS = [name for name, cls in lc.all_methods().items() if cls.__module__.startswith("lorachord.")]


@pytest.mark.parametrize("name", [*PACKAGED_METHODS, *BASELINES])
def test_each_method_has_a_preset_with_all_its_options_at_their_defaults(name: str) -> None:
    method = dict(read_recipe(RECIPES / "methods" / f"{name}.yaml").method)
    assert method.pop("name") == name
    config = BaselineConfig if name in BASELINES else lc.all_methods()[name].Config
    assert method == config().to_dict()
    assert {key: type(value) for key, value in method.items()} == {
        key: type(value) for key, value in config().to_dict().items()
    }
    assert method == next(row["options"] for row in method_rows() if row["name"] == name)


def test_texts_with_the_look_of_a_number_with_an_exponent_stay_texts() -> None:
    recipe = recipe_from(tree(MODEL, tasks={"own": [{**own("colour")[0], "labels": ["1e3", "2e-3"]}]}))
    assert recipe.tasks.own[0].labels == ("1e3", "2e-3")
    assert through_yaml(recipe) == recipe


@pytest.mark.parametrize("key", ["learning_rate", "weight_decay", "max_grad_norm"])
def test_a_number_without_end_is_refused(key: str) -> None:
    assert f"training.{key}: " in refused(training={key: float("inf")})


@pytest.mark.parametrize("settings", [[], ["seed=1"]])
def test_a_date_in_yaml_is_an_error_in_words(tmp_path: Path, settings: list[str]) -> None:
    path = tmp_path / "dated.yaml"
    path.write_text("model: {name: 2020-01-01, kind: encoder}\ntasks: {suite: glue}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"dated\.yaml.*write dates and the like in quotes"):
        read_recipe(path, settings)
    with pytest.raises(ValueError, match="write dates and the like in quotes"):
        recipe_from(
            {"model": {"name": "m", "kind": "encoder"}, "tasks": {"suite": "glue"}}, settings=["seed=2020-01-01"]
        )
