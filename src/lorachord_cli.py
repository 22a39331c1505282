"""The `lorachord` command: its options, read before anything heavy is imported.

It lies beside the package, because importing anything inside imports torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import TypeAlias

import shtab

from lorachord_help import COMPARE, EXAMPLES, FUSION_METHODS, INSPECT, REPORT

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

SPLITS = ("train", "val", "dev", "test")
SERVERS = ("vllm", "lorax", "sglang")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 0, or as docs/recipes.md has it."""
    parsed = build_parser().parse_args(arguments)
    status: int = import_module("lorachord.cli").run(parsed)
    return status


def build_parser() -> argparse.ArgumentParser:
    """The parser; `command` is the name of the command that was given."""
    parser = argparse.ArgumentParser(prog="lorachord", description="Multi-task low-rank adaptation.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('lorachord')}")
    shtab.add_argument_to(parser, "--print-completion", help="print a completion script for this shell")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_lists(commands)
    _add_check(commands)
    _add_train(commands)
    _add_evaluate(commands)
    _add_compare(commands)
    _add_predict(commands)
    _add_leaving(commands)
    _add_fuse(commands)
    _add_inspect(commands)
    _add_report(commands)
    _add_demo(commands)
    return parser


def _command(commands: Commands, name: str, words: str, description: str = "") -> argparse.ArgumentParser:
    """A command with its examples below its options."""
    examples = EXAMPLES.get(name, "").strip().replace("\n", "\n  ")
    return commands.add_parser(
        name,
        help=words,
        description=description or f"{words[0].upper()}{words[1:]}.",
        epilog=f"examples:\n  {examples}" if examples else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_lists(commands: Commands) -> None:
    methods = _command(commands, "methods", "list the methods, or explain one")
    methods.add_argument("name", nargs="?", metavar="NAME", help="a method, whose equation, paper and options to print")
    methods.add_argument("--json", action="store_true", help="as JSON, with the options and their defaults")
    _command(commands, "models", "list the packaged models that a recipe can name")
    suites = _command(commands, "suites", "list the suites of tasks that a recipe can name")
    suites.add_argument("--json", action="store_true", help="as JSON")
    tasks = _command(commands, "tasks", "list the tasks of a suite or of a recipe")
    tasks.add_argument("of", metavar="SUITE|RECIPE", help="a name that `lorachord suites` lists, or a YAML file")
    tasks.add_argument("--data", metavar="DIR", help="where a recipe's classes are read, if it does not name them")
    tasks.add_argument("--json", action="store_true", help="as JSON")
    runs = _command(commands, "runs", "list the runs below a folder")
    runs.add_argument("folder", nargs="?", default="runs", metavar="DIR", help="default: runs")
    runs.add_argument("--json", action="store_true", help="as JSON")


def _add_recipe(parser: argparse.ArgumentParser, words: str = "a YAML file; see recipes/ and docs/recipes.md") -> None:
    parser.add_argument("recipe", help=words)
    parser.add_argument("--set", action="append", default=[], metavar="a.b=VALUE", help="change a value of the recipe")
    parser.add_argument(
        "--data", metavar="DIR", help="a folder with a folder of files per task; default: the tasks' sources"
    )


def _add_check(commands: Commands) -> None:
    words = "say in seconds what a recipe is going to do, and what is wrong with its data; nothing is trained"
    check = _command(commands, "check", words)
    _add_recipe(check)
    check.add_argument("--no-time", action="store_true", help="run no steps to estimate the time and memory")
    check.add_argument("--json", action="store_true", help="as JSON")


def _add_train(commands: Commands) -> None:
    train = _command(commands, "train", "train from a recipe into a run folder")
    _add_recipe(train, "a YAML file, see recipes/ and docs/recipes.md; with --add-task, a finished run")
    train.add_argument("--out", metavar="DIR", help="the run folder; default: runs/RECIPE, or RUN_and_TASKS")
    words = "a YAML file with `tasks:`, which a finished run learns besides its own; its predictions are kept"
    train.add_argument("--add-task", metavar="TASKS", help=words)
    words = "with --add-task: new cores (the default, of task methods), all tasks' rows, or a fused adapter"
    train.add_argument("--how", choices=("core", "replay", "fuse"), help=words)
    train.add_argument("--resume", action="store_true", help="go on with the run that --out holds, if any")
    train.add_argument("--force", action="store_true", help="remove the run that --out holds first")


def _add_evaluate(commands: Commands) -> None:
    words = "score a run, from its saved predictions where it has them"
    evaluate = _command(commands, "evaluate", words)
    evaluate.add_argument("run_folder", metavar="RUN")
    evaluate.add_argument("--split", default="dev", choices=SPLITS, help="default: dev")
    evaluate.add_argument("--task", action="append", metavar="NAME", help="score this task alone; can be repeated")
    evaluate.add_argument("--beside", metavar="OTHER", help="another run, to show beside with the difference")
    evaluate.add_argument("--data", metavar="DIR", help="where the data lie now; default: as when it was trained")
    evaluate.add_argument("--again", action="store_true", help="predict anew, although predictions are saved")
    words = "ask tasks of the LM Evaluation Harness; a run of several tasks needs OWN=NAME, or --task"
    evaluate.add_argument("--harness", nargs="+", metavar="[OWN=]NAME", help=words)
    evaluate.add_argument("--include", metavar="DIR", help="with --harness: a folder with task files of your own")
    evaluate.add_argument("--shots", type=int, metavar="N", help="with --harness: examples before each question")
    evaluate.add_argument("--limit", type=int, metavar="N", help="with --harness: rows of each task at most")
    evaluate.add_argument("--json", action="store_true", help="as JSON")


def _add_predict(commands: Commands) -> None:
    predict = _command(commands, "predict", "answer new rows, which need no labels")
    predict.add_argument("model", metavar="RUN|ADAPTER", help="a run, an exported LoRA, a merged model")
    predict.add_argument("--task", metavar="NAME", help="of all rows; not needed where there is one task")
    predict.add_argument("--task-column", metavar="COLUMN", help="the column that names each row's task")
    predict.add_argument(
        "--input",
        default="-",
        metavar="FILE",
        help="a .csv, .jsonl or .parquet; default: -, stdin, with a text or a JSON object a line",
    )
    predict.add_argument(
        "--out", metavar="FILE", help="a new .csv, .jsonl or .parquet; default: stdout, as CSV for CSV, or JSON lines"
    )


def _add_compare(commands: Commands) -> None:
    words = "find out which method pays on your tasks, or that none does"
    compare = _command(commands, "compare", words, COMPARE)
    compare.add_argument("recipe", help="a YAML file of joint LoRA; see docs/compare.md")
    methods = "with commas: METHOD, METHOD[option=value,...], METHOD+RULE, METHOD+BALANCE; see `lorachord methods`"
    compare.add_argument("--methods", required=True, metavar="ROWS", help=methods)
    compare.add_argument("--out", metavar="DIR", help="the folder; default: comparisons/RECIPE")
    compare.add_argument("--set", action="append", default=[], metavar="a.b=VALUE", help="change a value of the recipe")
    compare.add_argument("--data", metavar="DIR", help="a folder with a folder of files per task")
    compare.add_argument("--seeds", type=int, default=3, help="of each row; default: 3")
    rates = "with commas; default: auto, a grid around the recipe's rate that widens until the best is inside"
    compare.add_argument("--rates", default="auto", metavar="RATES", help=rates)
    budget = "equal parameters within 2 %% (default), or each row's own"
    compare.add_argument("--budget", choices=("equal", "own"), default="equal", help=budget)
    claims = "A:B, two rows each, with commas; default: every row against lora"
    compare.add_argument("--claims", default="", metavar="CLAIMS", help=claims)
    compare.add_argument("--effect", type=float, default=0.02, help="smallest difference that matters; default: 0.02")
    words = "with commas: how many times as much the front lets each task count; default: 4"
    compare.add_argument("--weights", default="4", metavar="WEIGHTS", help=words)
    compare.add_argument("--jobs", type=int, help="trials at once; default: one for each two CPUs")
    compare.add_argument("--ray", metavar="ADDRESS", help="run on a Ray cluster, HOST:PORT, or local")
    compare.add_argument("--time", metavar="TIME", help="end within 30m, 2h, ...: leaves out what does not fit")
    compare.add_argument("--json", action="store_true", help="print the result as JSON")


def _add_leaving(commands: Commands) -> None:
    merge = _command(commands, "merge", "write a plain model with a run's adapter merged in")
    merge.add_argument("run_folder", metavar="RUN")
    merge.add_argument("--out", metavar="DIR", required=True, help="the folder to make")
    merge.add_argument("--task", metavar="NAME", help="needed where weights or heads differ by task")
    export = _command(commands, "export", "write a run's adapter as a plain LoRA, or one per task")
    export.add_argument("run_folder", metavar="RUN")
    export.add_argument("--out", metavar="DIR", required=True, help="the folder to make")
    export.add_argument("--task", action="append", metavar="NAME", help="this task alone, in DIR/NAME; can be repeated")
    export.add_argument("--for", dest="server", choices=SERVERS, help="print the command that serves them there")
    words = "make one plain LoRA per task of a routed run, and say what that costs"
    distill = _command(commands, "distill", words)
    distill.add_argument("run_folder", metavar="RUN")
    distill.add_argument("--to", required=True, choices=("lora",), help="the form: lora")
    distill.add_argument("--out", metavar="DIR", required=True, help="the folder to make, with a folder a task")
    distill.add_argument("--rank", type=int, help="of each layer at most; default: that which loses least")
    distill.add_argument("--task", action="append", metavar="NAME", help="this task alone; can be repeated")
    distill.add_argument("--max-rows", type=int, default=512, metavar="N", help="training rows a task; default: 512")
    distill.add_argument("--split", default="dev", choices=SPLITS, help="that both are scored on; default: dev")
    distill.add_argument("--data", metavar="DIR", help="where the data lie now; default: as when it was trained")
    distill.add_argument("--json", action="store_true", help="as JSON")


def _add_fuse(commands: Commands) -> None:
    fuse = _command(commands, "fuse", "make one plain LoRA of several finished adapters")
    fuse.add_argument("adapters", nargs="*", metavar="ADAPTER", help="a folder or TASK=FOLDER: an adapter, or a run")
    fuse.add_argument(
        "--method", required=True, metavar="NAME", help=f"one of {', '.join(FUSION_METHODS)}; see docs/fusion.md"
    )
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
    fuse.add_argument("--noise", metavar="KIND", help="on the task vectors: gaussian or leading; default: none")
    fuse.add_argument("--snr", type=float, metavar="DB", help="signal-to-noise ratio of each tensor; default: 0")
    fuse.add_argument("--seed", type=int, default=0, help="of the choice of examples and of the noise; default: 0")
    fuse.add_argument("--json", action="store_true", help="as JSON")


def _add_inspect(commands: Commands) -> None:
    words = "see what an adapter does: spectra, overlap, routing, conflicts, interference"
    inspect = _command(commands, "inspect", words, INSPECT)
    inspect.add_argument("model", metavar="RUN|ADAPTER", help="a run, a fused or exported adapter, a plain LoRA")
    inspect.add_argument("--against", metavar="OTHER", help="another of these, whose spectrum stands beside")
    inspect.add_argument("--split", default="dev", choices=SPLITS, help="rows that the model reads; default: dev")
    rows = "of each task, for routing and interference; default: 256; 0 reads none"
    inspect.add_argument("--max-rows", type=int, default=256, metavar="N", help=rows)
    inspect.add_argument("--data", metavar="DIR", help="where the data lie now; default: as when it was trained")
    inspect.add_argument("--out", metavar="DIR", help="a folder for the arrays, one .npz for each figure")
    inspect.add_argument("--json", action="store_true", help="as JSON")


def _add_report(commands: Commands) -> None:
    report = _command(commands, "report", "write one page that shows a run, an adapter or a comparison", REPORT)
    report.add_argument("of", metavar="RUN|ADAPTER|COMPARISON", help="a folder")
    report.add_argument("-o", "--out", metavar="FILE", help="default: report.html in the folder")
    report.add_argument("--against", metavar="OTHER", help="another run or adapter, whose spectrum stands beside")
    rows = "of each task, for routing and interference; default: 256; 0 reads none"
    report.add_argument("--max-rows", type=int, default=256, metavar="N", help=rows)
    report.add_argument("--data", metavar="DIR", help="where the data lie now; default: as when it was trained")


def _add_demo(commands: Commands) -> None:
    demo = _command(commands, "demo", "train on generated tasks that contradict each other, and compare")
    demo.add_argument("--out", metavar="DIR", default="runs/demo", help="default: runs/demo")
    demo.add_argument("--force", action="store_true", help="remove the demo that --out holds first")


if __name__ == "__main__":
    sys.exit(main())
