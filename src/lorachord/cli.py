"""The command line. Heavy modules are imported inside the commands."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import transformers

from lorachord.messages import table


def method_rows() -> list[dict[str, Any]]:
    """One row a method: what `lorachord methods --json` prints."""
    from lorachord.baselines import BASELINES
    from lorachord.core.context import Mixing
    from lorachord.core.registry import all_methods

    rows: list[dict[str, Any]] = [
        {
            "name": cls.method,
            "paper": cls.paper,
            "core": cls.mixing.value,
            "merges": {Mixing.STATIC: "yes", Mixing.TASK: "once per task", Mixing.INPUT: "no"}[cls.mixing],
            "needs_task_ids": cls.mixing is Mixing.TASK,
            "parameters": cls.parameters_formula,
            "options": cls.Config().to_dict(),
        }
        for cls in all_methods().values()
    ]
    formulas = {"peft_lora": "r*(d_in + d_out)", "peft_dora": "r*(d_in + d_out) + d_out"}
    rows += [
        {
            "name": name,
            "paper": paper,
            "core": "static",
            "merges": "yes",
            "needs_task_ids": False,
            "parameters": formulas[name],
            "options": {"r": 8, "alpha": 16.0, "dropout": 0.0, "rslora": False},
        }
        for name, paper in BASELINES.items()
    ]
    return rows


def _methods(arguments: argparse.Namespace) -> None:
    rows = method_rows()
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    columns = {"name": "name", "paper": "paper", "core": "core", "merges": "merges", "needs_task_ids": "task ids"}
    columns["parameters"] = "parameters per layer"
    cells = [list(columns.values())]
    for row in rows:
        shown = {**row, "needs_task_ids": "needed" if row["needs_task_ids"] else "-"}
        cells.append([str(shown[key]) for key in columns])
    print(table(cells))


def _models(arguments: argparse.Namespace) -> None:
    from lorachord.models.catalogue import CATALOGUE

    rows = [[name, model.kind, model.licence, model.description] for name, model in CATALOGUE.items()]
    print(table([["name", "kind", "licence", "what it is"], *rows]))


def _train(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from lorachord.runs.arguments import ranks
    from lorachord.runs.recipe import read_recipe
    from lorachord.runs.scores import score_table
    from lorachord.runs.train import train

    recipe = read_recipe(arguments.recipe, arguments.set)
    out = arguments.out or Path("runs", Path(arguments.recipe).stem)
    folder = train(recipe, out, data_dir=arguments.data, resume=arguments.resume, force=arguments.force)
    # Of several processes: threads of gloo that outlive the interpreter abort it now and then.
    ranks().destroy_process_group()
    print(f"dev, {recipe.method['name']}, {recipe.mode}, seed {recipe.seed}")
    print(score_table(folder.metrics["dev"]))
    print(f"The run is in {folder.path}.")


def _evaluate(arguments: argparse.Namespace) -> None:
    from lorachord.runs.scores import score_table
    from lorachord.runs.use import evaluate

    scores = evaluate(arguments.run_folder, arguments.split, data_dir=arguments.data, again=arguments.again)
    print(json.dumps(scores, indent=2) if arguments.json else score_table(scores))


def _merge(arguments: argparse.Namespace) -> None:
    from lorachord.runs.use import merge_run

    print(f"The merged model is in {merge_run(arguments.run_folder, arguments.out, arguments.task)}.")


def _export(arguments: argparse.Namespace) -> None:
    from lorachord.runs.use import export_run

    for folder in export_run(arguments.run_folder, arguments.out):
        print(f"A plain LoRA is in {folder}.")


def _fuse(arguments: argparse.Namespace) -> None:
    import yaml

    from lorachord.runs.fuse import fuse_adapters, make_method
    from lorachord.runs.fusion_report import How, fusion_table, loss_table

    options: dict[str, Any] = {}
    for setting in arguments.set:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"--set takes OPTION=VALUE; got {setting!r}.")
        options[name] = yaml.safe_load(value)
    given = {name: getattr(arguments, name) for name in ("granularity", "protect") if getattr(arguments, name)}
    # A method that knows better than singular values what to keep is told the rank as well.
    given |= {"rank": arguments.rank} if arguments.method == "collapse" and arguments.rank else {}
    names = ("adapt_on", "shots", "batch_size", "max_rows", "split", "rank", "full", "seed")
    found = fuse_adapters(
        arguments.adapters,
        arguments.out,
        make_method(arguments.method, {**given, **options}),
        base=arguments.base,
        recipe=arguments.recipe,
        data_dir=arguments.data,
        how=How(**{name: getattr(arguments, name) for name in names}),
    )
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    if found["adapted_on"] not in (None, "heldout"):
        print(f"Adapted on the inputs of {found['adapted_on']}: its scores are no independent measure any more.")
    if found["svd_error"] is not None:
        print(f"Cut by singular values: relative error of the update {found['svd_error']['all']:.3g}.")
    if "rank_correlation" in found["notes"]:
        print(loss_table(found["notes"]))
    if "scores" in found:
        print(f"{arguments.split}, {found['method']}\n{fusion_table(found)}")
    print(f"The fused {'model' if arguments.full else 'LoRA'} is in {arguments.out}.")


def _demo(arguments: argparse.Namespace) -> None:
    from lorachord.runs.demo import demo

    demo(arguments.out, force=arguments.force)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lorachord", description="Multi-task low-rank adaptation.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('lorachord')}")
    commands = parser.add_subparsers(dest="command", required=True)

    methods = commands.add_parser("methods", help="list the methods")
    methods.add_argument("--json", action="store_true", help="as JSON, with the options and their defaults")
    methods.set_defaults(run=_methods)

    models = commands.add_parser("models", help="list the packaged models that a recipe can name")
    models.set_defaults(run=_models)

    train = commands.add_parser("train", help="train from a recipe into a run folder")
    train.add_argument("recipe", help="a YAML file; see recipes/ and docs/recipes.md")
    train.add_argument("--set", action="append", default=[], metavar="a.b=VALUE", help="change a value of the recipe")
    train.add_argument("--data", metavar="DIR", help="a folder with a folder of files per task; default: the hub")
    train.add_argument("--out", metavar="DIR", help="the run folder; default: runs/RECIPE")
    train.add_argument("--resume", action="store_true", help="go on with the run that --out holds, if any")
    train.add_argument("--force", action="store_true", help="remove the run that --out holds first")
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("evaluate", help="score a run, from its saved predictions where it has them")
    evaluate.add_argument("run_folder", metavar="RUN")
    evaluate.add_argument("--split", default="dev", choices=("train", "val", "dev", "test"), help="default: dev")
    evaluate.add_argument("--data", metavar="DIR", help="where the data lie now; default: as when it was trained")
    evaluate.add_argument("--again", action="store_true", help="predict anew, although predictions are saved")
    evaluate.add_argument("--json", action="store_true", help="as JSON")
    evaluate.set_defaults(run=_evaluate)

    merge = commands.add_parser("merge", help="write a plain model with a run's adapter merged in")
    merge.add_argument("run_folder", metavar="RUN")
    merge.add_argument("--out", metavar="DIR", required=True, help="the folder to make")
    merge.add_argument("--task", metavar="NAME", help="needed where weights or heads differ by task")
    merge.set_defaults(run=_merge)

    export = commands.add_parser("export", help="write a run's adapter as a plain LoRA, or one per task")
    export.add_argument("run_folder", metavar="RUN")
    export.add_argument("--out", metavar="DIR", required=True, help="the folder to make")
    export.set_defaults(run=_export)

    fuse = commands.add_parser("fuse", help="make one plain LoRA of several finished adapters")
    fuse.add_argument("adapters", nargs="*", metavar="ADAPTER", help="a folder or TASK=FOLDER: an adapter, or a run")
    fuse.add_argument("--method", required=True, help="average, ties, adamerging, ...; see docs/fusion.md")
    fuse.add_argument("--out", metavar="DIR", required=True, help="the folder to make")
    fuse.add_argument("--base", metavar="MODEL", help="what the adapters were trained on; default: that of the runs")
    fuse.add_argument("--recipe", metavar="YAML", help="describes the tasks of adapters that are no runs")
    fuse.add_argument("--data", metavar="DIR", help="where the data lie now; default: as when the runs were made")
    fuse.add_argument("--granularity", choices=("task", "layer", "fixed"), help="of the coefficients")
    fuse.add_argument("--protect", action="append", metavar="LAYER", help="a layer, or a block, left to the base")
    fuse.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE", help="an option of the method")
    fuse.add_argument("--rank", type=int, help="of the result; default: exact, or that of all adapters together")
    fuse.add_argument("--full", action="store_true", help="save a whole model and no LoRA")
    fuse.add_argument("--adapt-on", default="heldout", help="heldout (default), dev or test")
    fuse.add_argument("--shots", type=int, default=16, help="labelled examples of each task, for r_mtllmf; default: 16")
    fuse.add_argument("--batch-size", type=int, default=16, help="examples of a task in a batch; default: 16")
    fuse.add_argument("--max-rows", type=int, default=512, help="examples of each task to adapt on; default: 512")
    fuse.add_argument("--split", default="dev", choices=("val", "dev", "test"), help="what is scored; default: dev")
    fuse.add_argument("--seed", type=int, default=0, help="of the choice of examples; default: 0")
    fuse.add_argument("--json", action="store_true", help="as JSON")
    fuse.set_defaults(run=_fuse)

    demo = commands.add_parser("demo", help="train on generated tasks that contradict each other, and compare")
    demo.add_argument("--out", metavar="DIR", default="runs/demo", help="default: runs/demo")
    demo.add_argument("--force", action="store_true", help="remove the demo that --out holds first")
    demo.set_defaults(run=_demo)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `lorachord`; returns the exit status: 0, or 2 for bad input."""
    parsed = _parser().parse_args(arguments)
    # PEFT and transformers tell their own developers of coming renames.
    renames = r"`(is_)?gradient_checkpointing(_kwargs)?` is deprecated"
    warnings.filterwarnings("ignore", message=renames, category=FutureWarning)
    if not sys.stderr.isatty():
        # No bars for loading weights in a log file.
        transformers.logging.disable_progress_bar()
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("lorachord").setLevel(logging.INFO)
    try:
        parsed.run(parsed)
    except ValueError as error:
        # Bad input, in words; a traceback would hide them.
        print(f"lorachord {parsed.command}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
