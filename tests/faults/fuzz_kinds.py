"""Recipes, adapter folders, data files and run folders to harm and to use, on tiny models."""

import copy
import json
import random
import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import lorachord as lc
from lorachord.data.sources import load_task
from lorachord.runs.checks import check
from lorachord.runs.folder import RunFolder
from lorachord.runs.log import RunLog
from lorachord.runs.recipe import recipe_from
from lorachord.runs.strict import load_yaml
from lorachord.runs.train import train
from lorachord.runs.use import evaluate, export_run, load_run
from lorachord.training.checkpoint_folders import last_checkpoint
from lorachord.tuner.adapter_files import load_onto
from tests.faults.mutations import ODD, harmed_bytes, harmed_tensors, harmed_tree
from tests.tiny_data import OWN, SUFFIXES, own, save_model, task_of, tree, write_data
from tests.tiny_models import perturb, tiny, token_ids

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"r": 2}, "mtl_lora": {"r": 2, "num_ups": 2}, "hydralora": {"r": 2, "num_experts": 2, "balance": 0.01},
    "mosld": {"r": 2, "num_experts": 3}, "mixlora": {"r": 2, "num_experts": 3}, "moelora": {"r": 2, "num_experts": 2},
    "malora": {"r": 3, "num_experts": 2, "expert_rank": 2}, "multilora": {"r": 2, "num_loras": 2},
}  # fmt: skip


class Kind(ABC):
    """Cases of one kind; `folder` is its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = save_model(tiny("bert"), folder / "base")

    @abstractmethod
    def one(self, draw: random.Random) -> None:
        """Harm something and use it. A ValueError is a right end; an AssertionError says what is not finite."""

    def copied(self, folder: Path) -> Path:
        copied = self.folder / "copied"
        shutil.rmtree(copied, ignore_errors=True)
        return Path(shutil.copytree(folder, copied))


class Recipes(Kind):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.trees = [
            tree(self.base, "colour", "size", method={"name": name, **options}) for name, options in METHODS.items()
        ]
        self.trees += [
            tree(self.base, "number", "colour", surgery={"rule": "ortho_lora"}, balance={"name": "running_scale"}),
            tree(self.base, tasks={"suite": "glue", "only": ["cola", "sst2"], "max_rows": 5}),
            tree(
                self.base, tasks={"lab": {"name": "lab-contradiction", "num_train": 20, "num_dev": 10}}, mode="single"
            ),
        ]
        recipes = Path(__file__).parents[2] / "recipes"
        for path in sorted(recipes.rglob("*.yaml")):
            # Packaged models are converted at their first use, which takes its time.
            given = yaml.safe_load(path.read_text())
            self.trees.append({**given, "model": {**given["model"], "name": str(self.base)}})

    def one(self, draw: random.Random) -> None:
        harmed = harmed_tree(draw, draw.choice(self.trees), 3)
        settings = []
        if draw.random() < 0.2:
            keys = (
                "training.max_steps",
                "method.r",
                "tasks.own.0.name",
                "tasks.only",
                "seed",
                "",
                ".",
                "a.b.c",
                "method",
            )
            settings = [f"{draw.choice(keys)}={draw.choice(ODD)}"]
        if draw.random() < 0.5:
            text = yaml.safe_dump(harmed, allow_unicode=True).encode("utf-8", "surrogatepass")
            if draw.random() < 0.6:
                text = harmed_bytes(draw, text)
            try:
                harmed = load_yaml(text.decode("utf-8"), "the recipe")
            except UnicodeDecodeError:
                return
        recipe = recipe_from(harmed, "the recipe", settings, self.folder)
        check(recipe, recipe.tasks.chosen())


class Adapters(Kind):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.bert, self.saved = tiny("bert"), []
        for name, options in METHODS.items():
            model = lc.attach(copy.deepcopy(self.bert), name, tasks=["a", "b"], **options)
            perturb(model)
            model.save_pretrained(folder / name)
            self.saved.append(folder / name)

    def one(self, draw: random.Random) -> None:
        harmed = self.copied(draw.choice(self.saved))
        harm_adapter(draw, harmed)
        model = load_onto(copy.deepcopy(self.bert), harmed).eval()
        with torch.no_grad(), lc.on_task(model, 0):
            assert bool(model(input_ids=token_ids()).logits.isfinite().all()), "an answer is not finite"


def harm_adapter(draw: random.Random, folder: Path) -> None:
    """Harm the config or the weights."""
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    kind = draw.randrange(5)
    if kind == 0:
        config.write_bytes(harmed_bytes(draw, config.read_bytes()))
    elif kind == 1:
        weights.write_bytes(harmed_bytes(draw, weights.read_bytes()))
    elif kind == 2:
        save_file(
            {name: value.contiguous() for name, value in harmed_tensors(draw, load_file(weights)).items()}, weights
        )
    elif kind == 3 and draw.random() < 0.2:
        draw.choice([config, weights]).unlink()
    else:
        config.write_text(json.dumps(harmed_tree(draw, json.loads(config.read_text()))))


class Data(Kind):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.data = write_data(folder / "data", train=12, dev=6)
        self.tasks = [task_of(fields) for fields in own(*OWN)]

    def one(self, draw: random.Random) -> None:
        task = draw.choice(self.tasks)
        whole = self.data / task.name
        harmed = self.copied(whole)
        path = harmed / f"{draw.choice(['train', 'dev'])}{SUFFIXES[task.name]}"
        if path.suffix == ".jsonl" and draw.random() < 0.6:
            rows = harmed_tree(draw, [json.loads(line) for line in path.read_text().splitlines()], 3)
            path.write_text(
                "".join(json.dumps(row) + "\n" for row in rows) if isinstance(rows, list) else json.dumps(rows)
            )
        else:
            path.write_bytes(harmed_bytes(draw, path.read_bytes()))
        folder = self.folder / "named"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        harmed.rename(folder / task.name)
        found = load_task(task, data_dir=folder)
        for part in (found.train, found.val, found.dev):
            for row in part if part is not None else ():
                json.dumps(row, allow_nan=False)


def stopping(on_log: Any) -> Any:
    """As if the user pressed a key in the third step."""

    def stopped(self: RunLog, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        on_log(self, args, state, control, **keywords)
        if state.global_step == 3:
            raise KeyboardInterrupt

    return stopped


class Runs(Kind):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.data = write_data(folder / "data", "colour", "number")
        self.runs = []
        for name in ("lora", "mtl_lora"):
            made = tree(
                self.base, "colour", "number", method={"name": name, **METHODS[name]}, training={"max_steps": 2}
            )
            self.runs.append(train(recipe_from(made), folder / name, data_dir=self.data).path)
        made = tree(self.base, "colour", "number", training={"max_steps": 3, "save_every": 1})
        self.begun = recipe_from(made)
        with patch.object(RunLog, "on_log", stopping(RunLog.on_log)):
            try:
                train(self.begun, folder / "begun", data_dir=self.data)
            except KeyboardInterrupt:
                assert last_checkpoint(folder / "begun" / "checkpoints") is not None

    def one(self, draw: random.Random) -> None:
        begun = draw.random() < 0.3
        harmed = self.copied(self.folder / "begun" if begun else draw.choice(self.runs))
        for _ in range(draw.randint(1, 2)):
            files = sorted(path for path in harmed.rglob("*") if path.is_file())
            path = draw.choice(files)
            if draw.random() < 0.15:
                path.unlink()
            elif path.suffix == ".json" and draw.random() < 0.6:
                try:
                    path.write_text(json.dumps(harmed_tree(draw, json.loads(path.read_text()))))
                except ValueError:
                    path.write_bytes(harmed_bytes(draw, path.read_bytes()))
            elif path.name == "adapter_model.safetensors" and draw.random() < 0.5:
                try:
                    harm_adapter(draw, path.parent)
                except (SafetensorError, ValueError):
                    # The first harm left no tensors to read.
                    path.write_bytes(harmed_bytes(draw, path.read_bytes()))
            else:
                path.write_bytes(harmed_bytes(draw, path.read_bytes()))
        if begun:
            last_checkpoint(harmed / "checkpoints")
            if draw.random() < 0.3:
                run = train(self.begun, harmed, data_dir=self.data, resume=True)
                json.dumps(run.metrics, allow_nan=False)
            return
        folder = RunFolder.open(harmed)
        if folder.finished:
            json.dumps(folder.metrics, allow_nan=False)
        json.dumps(evaluate(harmed, draw.choice(["dev", "val"])), allow_nan=False)
        if draw.random() < 0.5:
            model, _, tasks = load_run(harmed)
            with torch.no_grad(), lc.on_task(model, tasks[0].name):
                assert bool(model(input_ids=token_ids(4) % 18).logits.isfinite().all()), "an answer is not finite"
            shutil.rmtree(self.folder / "out", ignore_errors=True)
            export_run(harmed, self.folder / "out")


KINDS: dict[str, type[Kind]] = {"recipes": Recipes, "adapters": Adapters, "data": Data, "runs": Runs}
