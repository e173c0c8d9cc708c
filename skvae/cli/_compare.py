"""``skvae compare``: every estimator on one data set, as a table and a page."""

from __future__ import annotations

import importlib.util
import shlex
import sys
import time

from joblib import Parallel, cpu_count, delayed

from skvae.cli._columns import cells, columns
from skvae.cli._data import Prepared, prepare
from skvae.cli._documents import prepare_documents
from skvae.cli._files import check_writable, is_text, replaced
from skvae.cli._methods import (
    COLORS,
    chosen_estimators,
    common_parameters,
    compared_estimators,
    fit_baselines,
    fit_estimator,
)
from skvae.cli._parameters import parameters_from
from skvae.cli._terminal import Progress, print_table, say
from skvae.cli._words import Forecast, notes_on, summary


def run_compare(arguments):
    """Fit, measure, print, and write the page."""
    page = None if arguments.no_page else arguments.output
    if page is not None:
        check_writable(page)
    documents = is_text(arguments.data)
    known = compared_estimators(documents)
    classes = chosen_estimators(arguments.methods, known)
    started = time.perf_counter()
    arguments.jobs = arguments.jobs or cpu_count()
    data = prepare_documents(arguments) if documents else prepare(arguments)
    models = make_estimators(classes, arguments, data)
    for note in [describe(data), *data.notes]:
        say(note)
    colors = dict(zip(known, COLORS, strict=False))
    results = fit_all(models, colors, arguments, data)
    if not any(result.is_model for result in results):
        failures = {r.name: r.failure for r in results if r.failure}
        raise ValueError(f"No estimator could be fitted. {failures}")
    forecast = Forecast.of(next(r.estimator for r in results if r.is_model), data)
    say("")
    show(data, results, forecast)
    seconds = time.perf_counter() - started
    if page is not None:
        write_page(page, arguments, data, results, forecast, seconds)
    say(f"{time.perf_counter() - started:.0f} seconds in all.")


def describe(data: Prepared):
    """One line about the data."""
    what = f"{data.X.shape[1]} features"
    if data.texts is not None:
        what = f"{(data.X > 0).sum() / len(data.X):.1f} tokens each in training"
    return (
        f"{data.title}: {len(data.X):,} training and {len(data.X_test):,} held-out "
        f"{data.unit}s, {what}."
    )


def make_estimators(classes, arguments, data: Prepared):
    """Unfitted estimators; those that need labels are left out without them."""
    if arguments.without_labels and data.labelled:
        data.notes.append("Labels were kept out of training (--without-labels).")
    with_labels = data.labelled and not arguments.without_labels
    estimators = []
    given = common_parameters(arguments, data)
    for cls in classes:
        if not with_labels and cls().__sklearn_tags__().target_tags.required:
            data.notes.append(
                f"{cls.__name__} is left out: its prior needs labels or another "
                "auxiliary variable."
            )
            continue
        more = parameters_from(cls, arguments.set, among=classes)
        names = cls().get_params(deep=False)
        shared = {name: value for name, value in given.items() if name in names}
        estimators.append(cls(**{**shared, **more}))
    if not estimators:
        raise ValueError(" ".join(data.notes))
    return estimators


def fit_all(models, colors, arguments, data: Prepared):
    """Baselines first, then the estimators, in the order of the documentation."""
    # joblib gives each process its share of the threads.
    n_jobs = min(arguments.jobs, len(models))
    progress = Progress()
    baselines = fit_baselines(data, arguments.n_components, arguments.probe)
    fits = (
        delayed(fit_estimator)(
            model,
            data,
            colors[type(model)],
            with_labels=not arguments.without_labels and data.labelled,
            callbacks=progress.callbacks() if n_jobs == 1 else (),
            probe=arguments.probe,
        )
        # The last ones take longest: side by side, they start first.
        for model in (models if n_jobs == 1 else reversed(models))
    )
    fitted = Parallel(n_jobs, return_as="generator_unordered")(fits)
    if n_jobs > 1:
        fitted = progress.counted(fitted, len(models))
    results = []
    for result in fitted:
        progress.finished(result)
        results.append(result)
    names = [type(model).__name__ for model in models]
    return baselines + sorted(results, key=lambda result: names.index(result.name))


def show(data, results, forecast):
    """The table and what has to be said about it."""
    chosen = columns(data, results)
    rows, best = cells(chosen, results)
    headers = ["method", *(column.header for column in chosen)]
    print_table(headers, rows, emphasised=best)
    print()
    for sentence in summary(data, results, forecast):
        print(sentence)
    for note in notes_on(data, results):
        print(f"* {note}")


def write_page(name, arguments, data, results, forecast, seconds):
    """The page in one piece, or a word on why there is none."""
    if importlib.util.find_spec("matplotlib") is None:
        say("No page: its pictures need matplotlib, `pip install skvae[plot]`.")
        return
    from skvae.cli._page import page

    say("Drawing the page ...")
    command = shlex.join(["skvae", *arguments.argv])
    text = page(
        data, results, forecast, command=command, arguments=arguments, seconds=seconds
    )
    with replaced(name) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"Page: {name}")
    sys.stdout.flush()
