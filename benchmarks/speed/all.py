"""Run every speed study but the GPU's, one after the other, and fill in the targets.

    python benchmarks/speed/all.py
    python benchmarks/speed/all.py --render   # only write the tables anew

The machine must do nothing else meanwhile.
"""

import argparse
import importlib
import subprocess
import sys
from pathlib import Path

from _measure import FOLDER, RESULTS, read, target_table

NAMES = (
    "train",
    "products",
    "lidvae",
    "ivae",
    "replicas",
    "grid_search",
    "batches",
    "transform",
    "growth",
    "step",
)


def page(folder):
    """The targets with what was measured, of all studies."""
    measured = [
        (study, read(folder / study.path.name))
        for study in (importlib.import_module(name).STUDY for name in NAMES)
    ]
    lines = target_table(measured)
    verdicts = [line.split(" | ")[-1].removesuffix(" |") for line in lines[2:-1]]
    counts = [f"{verdicts.count(verdict)} {verdict}" for verdict in ("met", "not met")]
    return "\n".join(
        [
            "# Speed: targets and what was measured",
            "",
            "Ratios of times within one run, contestants in turn; median (smallest to "
            "largest) over repetitions. A target is met where the median meets it: "
            f"{', '.join(counts)}. Rows without one are there for what they tell.",
            "",
            *lines,
        ]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--repetitions", type=int)
    parser.add_argument("--render", action="store_true", help="run nothing")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="of the results")
    options = parser.parse_args()
    for name in options.only:
        command = [sys.executable, str(FOLDER / f"{name}.py")]
        if options.repetitions is not None:
            command += ["--repetitions", str(options.repetitions)]
        if options.folder != RESULTS:
            command += ["--output", str(options.folder / f"speed_{name}.csv")]
        if options.render:
            command.append("--render")
        subprocess.run(command, check=True)
    text = page(options.folder)
    (options.folder / "speed.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
