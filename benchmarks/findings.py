"""Prints a table of docs/findings.md from run folders, as Markdown.

python benchmarks/findings.py --first runs/glue/single_* --second runs/glue/joint_*
"""

import argparse

from lorachord.runs.paired import compare
from lorachord.runs.use import open_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", nargs="+", required=True, metavar="RUN", help="one finished run a seed")
    parser.add_argument("--second", nargs="+", required=True, metavar="RUN", help="the same seeds in the same order")
    parser.add_argument("--names", nargs=2, default=("single", "joint"), help="of the two; default: single joint")
    parser.add_argument("--split", default="dev", help="default: dev")
    chosen = parser.parse_args()
    first, second = ([open_run(path) for path in paths] for paths in (chosen.first, chosen.second))
    print(f"| task | metric | {chosen.names[0]} | {chosen.names[1]} | difference, 95 % | smallest visible |")
    print("|---|---|---|---|---|---|")
    for row in compare(first, second, chosen.split):
        mark = " *" if row.is_significant else ""
        change = f"{row.difference:+.3f} ± {row.half_width:.3f}{mark}"
        print(f"| {row.task} | {row.metric} | {row.first:.3f} | {row.second:.3f} | {change} | {row.smallest:.3f} |")


if __name__ == "__main__":
    main()
