"""The arguments of every command."""

from __future__ import annotations

import argparse
import sys

DATA_HELP = ".npz, .npy, .csv or .parquet file"
TEXT_HELP = (
    ".txt or .tsv (also .gz): a document a line, after a label and a tab if it has one"
)


class Stop(Exception):
    """Nothing is left to do: help was shown, or the arguments were wrong."""

    def __init__(self, code):
        super().__init__(code)
        self.code = code


class Parser(argparse.ArgumentParser):
    """Tells a mistake in one line and never ends the process."""

    def exit(self, status=0, message=None):
        if message:
            print(message, end="", file=sys.stderr)
        raise Stop(status)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def positive(text):
    """An integer of at least one."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def shape(text):
    """``28,28`` or ``32,32,3`` as a tuple."""
    sides = tuple(int(side) for side in text.lower().replace("x", ",").split(","))
    if len(sides) != 2 and sides[2:] != (3,):
        raise ValueError(text)
    return sides


positive.__name__, shape.__name__ = "positive integer", "image shape"


def _add_data_options(parser):
    parser.add_argument(
        "--target",
        metavar="NAME",
        help="column (or array of an .npz file) with the labels",
    )


def _add_compare(commands):
    parser = commands.add_parser(
        "compare",
        help="fit every estimator on one data set and show what came out",
        description="Fit every estimator and the usual baselines on one data set, "
        "measure them on held-out rows, print a table and write one HTML page. Of a "
        "text file: the sequence models. Without --data: the digits that come with "
        "scikit-learn.",
    )
    add = parser.add_argument
    add("--data", metavar="FILE", help=f"{DATA_HELP}; {TEXT_HELP}")
    _add_data_options(parser)
    add("--rows", type=positive, help="training rows (default 10000; documents 3000)")
    add("--n-components", "-k", type=positive, default=10, help="latents (default 10)")
    add("--max-iter", type=positive, help="epochs (default: 1000 to 6000 steps)")
    add("--width", type=positive, help="units per layer (default 64, 128 or 256)")
    add("--likelihood", metavar="NAME", help="default: chosen from the values of X")
    add("--methods", metavar="A,B", help="estimators to fit (default: all)")
    add("--set", metavar="NAME=VALUE", action="append", default=[], help="see fit")
    add("--without-labels", action="store_true", help="train without the labels")
    add(
        "--image-shape", type=shape, metavar="H,W", help="rows are images: H,W or H,W,3"
    )
    add("--probe", choices=["mlp"], help="add the probe of a network; takes minutes")
    add("--seed", type=int, default=0, help="decides everything random (default 0)")
    add("--n-init", type=positive, default=1, help="restarts per estimator")
    add("--jobs", type=positive, help="estimators fitted at once (default: cores)")
    add("--output", "-o", default="skvae-compare.html", help="default %(default)s")
    add("--no-page", action="store_true", help="print the table only")
    add("--quick", action="store_true", help="fewer rows and epochs, for a first look")


def _add_fit(commands):
    parser = commands.add_parser(
        "fit",
        allow_abbrev=False,
        help="fit one estimator and save it",
        description="Fit one estimator and save it. Its parameters are options: "
        "--n-components 8 --beta 4 --likelihood bernoulli, or --set beta=4.",
    )
    add = parser.add_argument
    add("estimator", metavar="ESTIMATOR", help="a name that `skvae list` shows")
    add("data", metavar="DATA", help=f"{DATA_HELP}; {TEXT_HELP}")
    _add_data_options(parser)
    add("--u", metavar="NAME", help="column (or array) with the auxiliary variable")
    add("--u-file", metavar="FILE", help=".npy or .csv file with it")
    add("--set", metavar="NAME=VALUE", action="append", default=[], help="a parameter")
    add("-o", "--output", metavar="MODEL", default="model.skvae", help="%(default)s")
    return parser


def _add_model_commands(commands):
    for name, text in (
        ("transform", "latents of the rows of a file"),
        ("score", "held-out log-likelihood of a file, in nats per row"),
    ):
        parser = commands.add_parser(name, help=text, description=f"Print the {text}.")
        add = parser.add_argument
        add("model", metavar="MODEL", help="a file that `skvae fit` wrote")
        add("data", metavar="DATA", help=f"{DATA_HELP}; {TEXT_HELP}")
        add("--part", choices=["train", "test"], help="part of an .npz file with two")
        _add_data_options(parser)
        add("--u", metavar="NAME", help="column (or array) with the auxiliary variable")
        if name == "transform":
            add("-o", "--output", metavar="FILE", help=".npy or .csv; default: print")


def _add_report(commands):
    parser = commands.add_parser(
        "report",
        help="which latents other restarts find again, and what u has to do with it",
        description="Fit clones from several starts, and again with u permuted, and "
        "tell which latents are reproducible and whether u identifies them.",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="a file of `skvae fit`, or an estimator's name")
    add("data", metavar="DATA", help=DATA_HELP)
    add("--part", choices=["train", "test"], help="part of an .npz file with two")
    _add_data_options(parser)
    add(
        "--u",
        metavar="NAME",
        help="column with the auxiliary variable (default: the labels)",
    )
    add("--u-file", metavar="FILE", help=".npy or .csv file with it")
    add("--set", metavar="NAME=VALUE", action="append", default=[], help="a parameter")
    add("--restarts", type=int, default=8, help="random starts (default 8)")
    add("--permutations", type=int, default=2, help="permuted refits (default 2)")
    add("--seed", type=int, default=0, help="decides everything random (default 0)")
    add("-o", "--output", metavar="FILE", help="write the numbers as .json")


def _add_answers(commands):
    parser = commands.add_parser(
        "forecast",
        help="which latents will collapse, before any training",
        description="Predict from one decomposition of X which latents will live.",
    )
    add = parser.add_argument
    add("data", metavar="DATA", help=DATA_HELP)
    _add_data_options(parser)
    add("--beta", type=float, default=1.0, help="weight of the KL term (default 1)")
    add("--n-components", "-k", type=positive, default=10, help="latents (default 10)")
    add("--noise-variance", type=float, help="fixed noise (default: learned)")
    add("--likelihood", metavar="NAME", default="gaussian", help="%(default)s")
    parser = commands.add_parser("list", help="estimators, likelihoods and decoders")
    parser.add_argument(
        "estimator", metavar="ESTIMATOR", nargs="?", help="show its parameters"
    )


def _add_reproduce(commands):
    parser = commands.add_parser(
        "reproduce",
        help="run a published experiment and write its table",
        description="Run the cells of a published experiment that its .csv file lacks, "
        "and write the table as Markdown. An interrupted run goes on where it stopped. "
        "Without TABLE: list the tables.",
    )
    add = parser.add_argument
    add("table", metavar="TABLE", nargs="?", help="default: list the tables")
    add("--seeds", type=positive, help="number of seeds (default: the table's own)")
    add("--first-seed", type=int, default=0, help="default 0")
    add("--methods", metavar="A|B", help="some of the methods (default: all)")
    add("--problems", metavar="A|B", help="some of the problems (default: all)")
    add("--max-iter", type=positive, help="epochs (default: the table's own)")
    add("--data-dir", metavar="DIR", help="where the image files lie")
    add("--output", "-o", metavar="DIR", default=".", help="for .csv and .md")
    add("--render", action="store_true", help="write the table from the rows there are")


def build():
    """The parser, and that of ``fit``, whose options are not all known here."""
    from skvae import __version__

    parser = Parser(
        prog="skvae",
        description="Variational autoencoders whose latents do not collapse.",
        epilog="skvae COMMAND --help lists the options of a command.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument(
        "--traceback", action="store_true", help="show where an error came from"
    )
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=Parser
    )
    _add_compare(commands)
    fit = _add_fit(commands)
    _add_model_commands(commands)
    _add_report(commands)
    _add_answers(commands)
    _add_reproduce(commands)
    return parser, fit


def _take_parameters(fit, argv):
    """Turn ``--beta 4`` into ``--set beta=4`` where fit has no option of the name."""
    known = set(fit._option_string_actions)
    kept, rest = [], list(argv)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if not name.startswith("--") or name in known or name == "--":
            kept.append(word)
            if word in known and word not in {"--help", "-h"} and rest:
                kept.append(rest.pop(0))
            continue
        if not equals:
            if not rest:
                fit.error(f"{name} needs a value")
            value = rest.pop(0)
        kept.append(f"--set={name[2:]}={value}")
    return kept


def parse(argv):
    """The arguments as a namespace; Stop where there is nothing to run."""
    parser, fit = build()
    if "fit" in argv:
        start = argv.index("fit") + 1
        argv = [*argv[:start], *_take_parameters(fit, argv[start:])]
    return parser.parse_args(argv)
