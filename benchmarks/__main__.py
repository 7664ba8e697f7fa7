"""`make bench`: run every benchmark, or those named on the command line, and print their tables."""

import sys
from importlib import import_module

from benchmarks.timing import Row, print_table

BENCHMARKS = {
    "executor": "benchmarks.executor",
    "temperature": "benchmarks.temperature",
    "topk": "benchmarks.topk",
    "codecs": "benchmarks.codecs",
    "sampled": "benchmarks.sampled",
    "store": "benchmarks.dataset",
    "columns": "benchmarks.columns",
    "distillkit": "benchmarks.distillkit",
    "served": "benchmarks.served",
    "packed": "benchmarks.packed",
    "recipes": "benchmarks.recipes",
    "ternary": "benchmarks.ternary",
    "sandbox": "benchmarks.sandbox",
}


def main() -> None:
    for name in sys.argv[1:] or BENCHMARKS:
        if name not in BENCHMARKS:
            sys.exit(f"no benchmark is called {name!r}; there are {', '.join(BENCHMARKS)}")
        module = import_module(BENCHMARKS[name])
        rows: list[Row] = module.run()
        print_table(module.TITLE, rows)


if __name__ == "__main__":
    main()
