"""The `lorachord` command: its options, read before anything heavy is imported.

It lies beside the package, because importing anything inside imports torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Any


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 0, or as docs/recipes.md has it."""
    parsed = build_parser().parse_args(arguments)
    status: int = import_module("lorachord.cli").run(parsed)
    return status


def build_parser() -> argparse.ArgumentParser:
    """The parser; `command` is the name of the command that was given."""
    parser = argparse.ArgumentParser(prog="lorachord", description="Multi-task low-rank adaptation.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('lorachord')}")
    commands = parser.add_subparsers(dest="command", required=True)

    methods = commands.add_parser("methods", help="list the methods, or explain one")
    methods.add_argument("name", nargs="?", metavar="NAME", help="a method, whose equation, paper and options to print")
    methods.add_argument("--json", action="store_true", help="as JSON, with the options and their defaults")

    commands.add_parser("models", help="list the packaged models that a recipe can name")

    train = commands.add_parser("train", help="train from a recipe into a run folder")
    train.add_argument("recipe", help="a YAML file; see recipes/ and docs/recipes.md")
    train.add_argument("--set", action="append", default=[], metavar="a.b=VALUE", help="change a value of the recipe")
    train.add_argument(
        "--data", metavar="DIR", help="a folder with a folder of files per task; default: the tasks' sources"
    )
    train.add_argument("--out", metavar="DIR", help="the run folder; default: runs/RECIPE")
    train.add_argument("--resume", action="store_true", help="go on with the run that --out holds, if any")
    train.add_argument("--force", action="store_true", help="remove the run that --out holds first")

    evaluate = commands.add_parser("evaluate", help="score a run, from its saved predictions where it has them")
    evaluate.add_argument("run_folder", metavar="RUN")
    evaluate.add_argument("--split", default="dev", choices=("train", "val", "dev", "test"), help="default: dev")
    evaluate.add_argument("--task", action="append", metavar="NAME", help="score this task alone; can be repeated")
    evaluate.add_argument("--beside", metavar="OTHER", help="another run, to show beside with the difference")
    evaluate.add_argument("--data", metavar="DIR", help="where the data lie now; default: as when it was trained")
    evaluate.add_argument("--again", action="store_true", help="predict anew, although predictions are saved")
    evaluate.add_argument("--json", action="store_true", help="as JSON")

    _add_compare(commands)

    merge = commands.add_parser("merge", help="write a plain model with a run's adapter merged in")
    merge.add_argument("run_folder", metavar="RUN")
    merge.add_argument("--out", metavar="DIR", required=True, help="the folder to make")
    merge.add_argument("--task", metavar="NAME", help="needed where weights or heads differ by task")

    export = commands.add_parser("export", help="write a run's adapter as a plain LoRA, or one per task")
    export.add_argument("run_folder", metavar="RUN")
    export.add_argument("--out", metavar="DIR", required=True, help="the folder to make")
    export.add_argument("--task", action="append", metavar="NAME", help="this task alone, in DIR/NAME; can be repeated")

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
    fuse.add_argument("--noise", metavar="KIND", help="on the task vectors: gaussian or leading; default: none")
    fuse.add_argument("--snr", type=float, metavar="DB", help="signal-to-noise ratio of each tensor; default: 0")
    fuse.add_argument("--seed", type=int, default=0, help="of the choice of examples and of the noise; default: 0")
    fuse.add_argument("--json", action="store_true", help="as JSON")

    demo = commands.add_parser("demo", help="train on generated tasks that contradict each other, and compare")
    demo.add_argument("--out", metavar="DIR", default="runs/demo", help="default: runs/demo")
    demo.add_argument("--force", action="store_true", help="remove the demo that --out holds first")
    return parser


COMPARE = """Trains each method with several learning rates and seeds at equal parameters, beside rows that
every comparison needs: the base untrained, LoRA for each task alone, joint LoRA, joint LoRA with the
task's name in the text, joint LoRA of high rank, and a front of fixed task weights. It ends with a
verdict: which method to take, that joint LoRA will do, or what so few seeds cannot show.

The recipe is that of joint LoRA; its rank sets the budget. A comparison that was stopped or killed
goes on with the same command.

examples:
  lorachord compare support.yaml --methods mtl_lora,lora+ortho_lora
  lorachord compare support.yaml --methods 'mtl_lora[num_ups=1],hydralora' --seeds 5 --jobs 2 --time 2h
  lorachord compare support.yaml --methods mtl_lora --claims mtl_lora:lora+name
"""


def _add_compare(commands: Any) -> None:
    compare = commands.add_parser(
        "compare",
        help="find out which method pays on your tasks, or that none does",
        description=COMPARE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
    compare.add_argument("--jobs", type=int, help="trials at once; default: one for each two CPUs")
    compare.add_argument("--ray", metavar="ADDRESS", help="run on a Ray cluster, HOST:PORT, or local")
    compare.add_argument("--time", metavar="TIME", help="end within 30m, 2h, ...: leaves out what does not fit")
    compare.add_argument("--json", action="store_true", help="print the result as JSON")


if __name__ == "__main__":
    sys.exit(main())
