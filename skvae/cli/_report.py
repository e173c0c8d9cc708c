"""``skvae report``: are the latents reproducible, and what has u to do with it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
from sklearn.pipeline import Pipeline

import skvae
from skvae.cli._files import check_writable, read_table, replaced
from skvae.cli._models import auxiliary, load, model_for, rows_for
from skvae.cli._parameters import estimator_class, parameters_from
from skvae.cli._terminal import Progress, print_table


def run_report(arguments):
    """Refit from several starts, print what agrees, save it if asked to."""
    if arguments.output is not None:
        check_writable(arguments.output)
    model, X, u = subject(arguments)
    callbacks = Progress().callbacks()
    if callbacks:
        model.set_callbacks(*callbacks)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = skvae.identifiability_report(
            model,
            X,
            u,
            n_restarts=arguments.restarts,
            n_permutations=arguments.permutations,
            random_state=arguments.seed,
        )
    show(report)
    for text in dict.fromkeys(str(item.message) for item in caught):
        print(f"* {text}")
    if arguments.output is not None:
        with replaced(arguments.output) as temporary:
            temporary.write_text(json.dumps(report.to_dict(), indent=2) + "\n")
        print(f"Report: {arguments.output}")


def subject(arguments):
    """A saved model or a new estimator, with the rows and u to examine it on."""
    if Path(arguments.model).suffix or Path(arguments.model).exists():
        if arguments.set:
            raise ValueError("--set goes with the name of an estimator, not a file.")
        model = load(arguments.model)
        if isinstance(model, Pipeline):
            raise ValueError(f"{arguments.model} reads text; report is for tables.")
        X, table = rows_for(model, arguments, default="train")
    else:
        cls = estimator_class(arguments.model)
        parameters = parameters_from(cls, arguments.set)
        table = read_table(arguments.data, arguments.target, arguments.u)
        model, X = model_for(cls, parameters, table, arguments.data)
    u = auxiliary(arguments, table)
    return model, X, table.y if u is None else u


def show(report):
    """The table of components, what stands below it, and the sentence."""
    print(
        f"{report.estimator}: {report.n_restarts} restarts on {report.n_train:,} rows, "
        f"judged on {report.n_held_out:,} held-out rows.\n"
        f"Components are those of {report.reference}.\n"
    )
    rows = [
        [
            str(i),
            str(found) if alive else "-",
            f"{100 * share:.0f}%",
            state,
        ]
        for i, (found, alive, share, state) in enumerate(
            zip(
                report.consistency,
                report.active,
                report.variance_given_u,
                report.states,
                strict=True,
            )
        )
    ]
    headers = ["component", "consistency (95%)", "variance given u", "state"]
    good = [(i, 3) for i in np.flatnonzero(report.reproducible & report.active_given_u)]
    print_table(headers, rows, emphasised=good)
    print()
    for line in report.details():
        print(line)
    print(f"\n{report.verdict}")
