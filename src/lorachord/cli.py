"""The commands of the command line, whose options `lorachord_cli.py` reads. Heavy modules are imported inside."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import transformers

from lorachord.endings import in_words
from lorachord.listing_commands import methods, models, runs, suites, tasks
from lorachord.messages import show, table, tell
from lorachord_cli import build_parser


def _check(arguments: argparse.Namespace) -> None:
    from lorachord.runs.forecast import as_text, forecast
    from lorachord.runs.recipe import read_recipe

    recipe = read_recipe(arguments.recipe, arguments.set, arguments.data)
    found = forecast(recipe, arguments.data, timed=not arguments.no_time)
    tell(arguments.json, found.to_dict(), lambda: as_text(recipe, found))
    if found.problems:
        raise ValueError(f"this recipe cannot be trained; problems: {len(found.problems)}. {found.problems[0]}")


def _train(arguments: argparse.Namespace) -> None:
    from lorachord.runs.arguments import ranks
    from lorachord.runs.constants import constant_scores
    from lorachord.runs.later import recipe_to_train
    from lorachord.runs.scores import score_table
    from lorachord.runs.sequence import sequence_rows
    from lorachord.runs.train import train
    from lorachord.runs.use import predictions

    named, settings, data = arguments.recipe, arguments.set, arguments.data
    recipe, usual = recipe_to_train(named, settings, data, add_task=arguments.add_task, how=arguments.how)
    folder = train(recipe, arguments.out or usual, data_dir=data, resume=arguments.resume, force=arguments.force)
    # Of several processes: threads of gloo that outlive the interpreter abort it now and then.
    ranks().destroy_process_group()
    print(f"dev, {recipe.method['name']}, {recipe.mode}, seed {recipe.seed}")
    show(score_table(folder.metrics["dev"], constant_scores(recipe.tasks.chosen(), predictions(folder.path))))
    if recipe.mode == "sequence":
        print("\ndev after each task")
        show(table(sequence_rows(folder.metrics)))
    print(f"The run is in {folder.path}.")


def _evaluate(arguments: argparse.Namespace) -> None:
    from lorachord.runs.beside import beside, beside_table
    from lorachord.runs.constants import constant_scores
    from lorachord.runs.scores import score_table, scores_of
    from lorachord.runs.use import choose_tasks, open_run, predictions

    if arguments.harness:
        from lorachord.harness.asking import asked

        return tell(arguments.json, *asked(arguments))
    run, split, names = arguments.run_folder, arguments.split, arguments.task
    how: dict[str, Any] = {"names": names, "data_dir": arguments.data, "again": arguments.again}
    if arguments.beside is not None:
        found = beside(run, arguments.beside, split, **how)
        tell(arguments.json, found, lambda: beside_table(found))
        return
    records, tasks = predictions(run, split, **how), choose_tasks(open_run(run), names)
    scores = scores_of(tasks, records)
    tell(arguments.json, scores, lambda: score_table(scores, constant_scores(tasks, records)))


def _compare(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from lorachord.runs.compare.command import compare
    from lorachord.runs.compare.compared_rows import ratios_of, split_rows
    from lorachord.runs.compare.ladder import rates_of
    from lorachord.runs.compare.tables import terminal
    from lorachord.runs.compare.timing import seconds_of
    from lorachord.runs.recipe import read_recipe

    recipe = read_recipe(arguments.recipe, arguments.set, arguments.data)
    out = arguments.out or Path("comparisons", Path(arguments.recipe).stem)
    found = compare(
        recipe,
        split_rows(arguments.methods),
        out,
        seeds=arguments.seeds,
        rates=rates_of(arguments.rates),
        budget=arguments.budget,
        claims=split_rows(arguments.claims),
        effect=arguments.effect,
        weights=ratios_of(arguments.weights),
        data_dir=arguments.data,
        jobs=arguments.jobs,
        ray=arguments.ray,
        seconds=seconds_of(arguments.time),
    ).result
    files = f"The comparison is in {out}, with a run folder for each trial in trials/."
    tell(arguments.json, found, lambda: f"{terminal(found)}\n\n{files}")


def _predict(arguments: argparse.Namespace) -> None:
    from lorachord.runs.new_rows import answer_file

    given, out = arguments.input, arguments.out
    count = answer_file(arguments.model, given, out, task=arguments.task, task_column=arguments.task_column)
    if out is not None:
        print(f"The answers to {count:,} rows are in {out}.")


def _merge(arguments: argparse.Namespace) -> None:
    from lorachord.runs.use import merge_run

    print(f"The merged model is in {merge_run(arguments.run_folder, arguments.out, arguments.task)}.")


def _export(arguments: argparse.Namespace) -> None:
    from lorachord.runs.serving import check_server, refusals, serve_command
    from lorachord.runs.use import export_run

    if arguments.server is not None:
        check_server(arguments.run_folder)
    folders = export_run(arguments.run_folder, arguments.out, arguments.task)
    for folder in folders:
        print(f"A plain LoRA is in {folder}.")
        for refused in refusals(folder):
            logging.getLogger("lorachord").warning("%s: %s", folder, refused)
    if arguments.server is not None:
        print(serve_command(arguments.server, folders))


def _distill(arguments: argparse.Namespace) -> None:
    from lorachord.runs.distill import distill_run, distill_table

    given = {name: getattr(arguments, name) for name in ("rank", "max_rows", "split")}
    found = distill_run(arguments.run_folder, arguments.out, arguments.task, data_dir=arguments.data, **given)
    tell(arguments.json, found, lambda: f"{arguments.split}, each task\n{distill_table(found)}")
    if not arguments.json:
        print(f"A plain LoRA for each task is in {arguments.out}.")


def _fuse(arguments: argparse.Namespace) -> None:
    from lorachord.runs.fuse import fuse_adapters, make_method, options_of
    from lorachord.runs.fusion_report import How, fusion_words

    options = options_of(arguments.set)
    given = {name: getattr(arguments, name) for name in ("granularity", "protect") if getattr(arguments, name)}
    # A method that knows better than singular values what to keep is told the rank as well.
    given |= {"rank": arguments.rank} if arguments.method == "collapse" and arguments.rank else {}
    names = ("adapt_on", "shots", "batch_size", "max_rows", "split", "rank", "full", "noise", "snr", "seed")
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
    for told in fusion_words(found, arguments.split):
        show(told)
    print(f"The fused {'model' if arguments.full else 'LoRA'} is in {arguments.out}.")


def _inspect(arguments: argparse.Namespace) -> None:
    from lorachord.runs.inspect import inspect

    given = {name: getattr(arguments, name) for name in ("against", "split", "max_rows")}
    found = inspect(arguments.model, data_dir=arguments.data, **given)
    tell(arguments.json, found.to_dict(), found.text)
    if arguments.out is not None:
        found.save(arguments.out)


def _report(arguments: argparse.Namespace) -> None:
    from lorachord.runs.report import report

    given = {"against": arguments.against, "max_rows": arguments.max_rows, "data_dir": arguments.data}
    print(f"The report is in {report(arguments.of, arguments.out, **given)}.")


def _demo(arguments: argparse.Namespace) -> None:
    from lorachord.runs.demo import demo

    demo(arguments.out, force=arguments.force)


COMMANDS = {
    "methods": methods,
    "models": models,
    "suites": suites,
    "tasks": tasks,
    "runs": runs,
    "check": _check,
    "train": _train,
    "evaluate": _evaluate,
    "compare": _compare,
    "predict": _predict,
    "merge": _merge,
    "export": _export,
    "distill": _distill,
    "fuse": _fuse,
    "inspect": _inspect,
    "report": _report,
    "demo": _demo,
}


def run(parsed: argparse.Namespace) -> int:
    """Run the command of the parsed options; returns the exit status, as `endings.in_words` has it."""
    # PEFT and transformers tell their own developers of coming renames.
    renames = r"`(is_)?gradient_checkpointing(_kwargs)?` is deprecated"
    warnings.filterwarnings("ignore", message=renames, category=FutureWarning)
    if not sys.stderr.isatty():
        # No bars for loading weights in a log file.
        transformers.logging.disable_progress_bar()
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("lorachord").setLevel(logging.INFO)
    return in_words(parsed.command, lambda: COMMANDS[parsed.command](parsed))


def main(arguments: Sequence[str] | None = None) -> int:
    """The whole command, from inside the package; see `lorachord_cli.main`."""
    return run(build_parser().parse_args(arguments))
