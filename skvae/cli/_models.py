"""``skvae fit``, ``transform`` and ``score``: one model in a file."""

from __future__ import annotations

import inspect
import sys
import warnings
from pathlib import Path

import numpy as np
from sklearn.pipeline import Pipeline, make_pipeline

import skvae
from skvae.cli._data import (
    check_finite,
    choose_likelihood,
    domain_of,
    scaled_to_unit,
)
from skvae.cli._documents import tokenizer_of, written
from skvae.cli._files import (
    check_writable,
    closest,
    is_text,
    numbers,
    read_column,
    read_documents,
    read_table,
    replaced,
)
from skvae.cli._parameters import estimator_class, parameters_from
from skvae.cli._terminal import Progress, print_table, say
from skvae.estimators import sequence_estimators

# Beyond this ratio of deviations, large columns decide alone what is learned.
UNEQUAL_SCALES = 10.0


def run_fit(arguments):
    """Fit one estimator, print what came of it, save it."""
    check_writable(arguments.output)
    cls = estimator_class(arguments.estimator)
    parameters = parameters_from(cls, arguments.set)
    documents = is_text(arguments.data)
    fit_data = fit_documents if documents else fit_rows
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model, fitted, n_rows = fit_data(cls, parameters, arguments)
    describe(model, n_rows, "document" if documents else "row")
    for text in dict.fromkeys(str(item.message) for item in caught):
        print(f"* {text}")
    with replaced(arguments.output) as temporary:
        skvae.save(fitted, temporary)
    print(f"Model: {arguments.output}")


def fit_rows(cls, parameters, arguments):
    """A model of a table's rows, what to save of it, and their number."""
    table = read_table(arguments.data, arguments.target, arguments.u)
    model, X = model_for(cls, parameters, table, arguments.data)
    warn_about_scales(np.asarray(X), model)
    fit(model, X, table.y, auxiliary(arguments, table))
    return model, model, len(X)


def model_for(cls, parameters, table, path):
    """An unfitted model, of the likelihood that goes with the values, and its X."""
    X = checked(table.X, path)
    model = cls(**parameters)
    if hasattr(model, "likelihood") and "likelihood" not in parameters:
        name, reason = choose_likelihood(np.asarray(X), table.image_shape)
        model.set_params(likelihood=name)
        say(f"Likelihood {name}: {reason}; --set likelihood=... overrides.")
    return model, divided(X, model, table.image_shape)


def fit_documents(cls, parameters, arguments):
    """A model of a text file's lines, the pipeline from text, and their number."""
    model = cls(**parameters)
    if cls not in sequence_estimators():
        names = ", ".join(known.__name__ for known in sequence_estimators())
        raise ValueError(
            f"{cls.__name__} learns from tables, and {arguments.data} is text. "
            f"For text there are: {names}."
        )
    if arguments.u is not None or arguments.u_file is not None:
        raise ValueError(f"{cls.__name__} takes no auxiliary variable. Leave out --u.")
    texts, notes = documents_of(arguments), []
    tokenizer = tokenizer_of(texts, notes)
    for note in notes:
        say(note)
    fit(model, tokenizer.transform(texts), None, None)
    return model, make_pipeline(tokenizer, model), len(texts)


def documents_of(arguments):
    """The lines of a text file that hold something; empty ones are told."""
    if arguments.target is not None:
        raise ValueError("--target does not go with a text file, which has no columns.")
    lines, _ = read_documents(arguments.data)
    notes = []
    texts, _ = written(lines, None, notes)
    for note in notes:
        say(note)
    return list(texts)


def fit(model, X, y, u):
    """Fit with a progress bar where someone watches."""
    callbacks = Progress().callbacks()
    if callbacks:
        model.set_callbacks(*callbacks)
    takes_u = "u" in inspect.signature(model.fit).parameters
    if u is not None and not takes_u:
        raise ValueError(
            f"{type(model).__name__} takes no auxiliary variable. Leave out --u, or "
            "use iVAE or IdentifiableVAE."
        )
    model.fit(X, y, **({"u": u} if takes_u else {}))
    if callbacks:
        model.set_callbacks()


def auxiliary(arguments, table):
    """U from a column or from a file of its own."""
    if arguments.u_file is None:
        return table.u
    if arguments.u is not None:
        raise ValueError("Give --u or --u-file, not both.")
    u = read_column(arguments.u_file)
    if len(u) != len(table.X):
        raise ValueError(
            f"{arguments.u_file} has {len(u)} rows, {arguments.data} {len(table.X)}."
        )
    return u


def checked(X, path):
    """A table or an array of finite numbers, its column names kept."""
    X = numbers(X, path)
    check_finite(np.asarray(X), path, list(getattr(X, "columns", [])) or None)
    return X


def divided(X, model, image_shape):
    """Grey levels as shares of 255, told to the user."""
    if hasattr(X, "columns") or not hasattr(model, "likelihood"):
        return X
    X, was_divided = scaled_to_unit(X, model.likelihood, image_shape)
    if was_divided:
        say("Grey levels are divided by 255.")
    return X


def warn_about_scales(X, model):
    """Say when a few columns will drown the others."""
    if not hasattr(model, "likelihood") or domain_of(model.likelihood) != "real":
        return
    spread = X.std(axis=0)
    spread = spread[spread > 0]
    if len(spread) and spread.max() > UNEQUAL_SCALES * spread.min():
        say(
            f"Standard deviations of the columns go from {spread.min():.2g} to "
            f"{spread.max():.2g}: the large ones will decide what is learned. "
            "Standardise the file if that is not meant."
        )


def describe(model, n_rows, unit):
    """KL per component, and what the estimator knows about itself."""
    active = model.active_components_
    rows = [
        [str(i), f"{kl:.3f}", f"{100 * share:.1f}%", "active" if lives else "collapsed"]
        for i, (kl, share, lives) in enumerate(
            zip(model.kl_per_component_, model.explained_kl_ratio_, active, strict=True)
        )
    ]
    print(f"{type(model).__name__} on {n_rows:,} {unit}s, {model.n_iter_} epochs\n")
    print_table(["component", "KL in nats", "share", "state"], rows)
    print(f"\n{active.sum()} of {len(active)} components active.")
    if hasattr(model, "inverse_lipschitz_"):
        print(
            f"Certificate: |f(z) - f(z')| >= {model.inverse_lipschitz_:.3g} |z - z'|."
        )
    if hasattr(model, "identifiability_"):
        found = model.identifiability_
        holds = "hold" if found["holds"] else "do not all hold"
        print(f"Assumptions of {found['theorem']} {holds}:")
        for name, (fine, why) in found["assumptions"].items():
            print(f"  {'yes' if fine else 'no ':3} {name}: {why}")
    if hasattr(model, "consistency_"):
        print(f"Consistency over restarts: {np.round(model.consistency_, 2)}")


def load(path):
    """A saved estimator; one line of complaint for anything else."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no model file {path}.")
    return skvae.load(path)


def rows_for(model, arguments, default="test"):
    """X as the model saw it in training, and the table it came from.

    Of a file with two parts, `default` is read where --part does not say which.
    """
    table = read_table(arguments.data, arguments.target, arguments.u)
    X = table.X
    if table.X_test is not None:
        part = arguments.part or default
        say(f"The {part} part of {arguments.data} (--part).")
        if part == "test":
            X = table.X_test
            table = table._replace(y=table.y_test, u=None)
    elif arguments.part is not None:
        raise ValueError(f"{arguments.data} has no training and test parts.")
    wanted = getattr(model, "feature_names_in_", None)
    if hasattr(X, "columns") and wanted is not None:
        missing = [name for name in wanted if name not in X.columns]
        if missing:
            raise ValueError(
                f"{arguments.data} lacks the column {missing[0]!r} that the model was "
                f"trained on.{closest(missing[0], X.columns)}"
            )
        X = X[list(wanted)]
    elif hasattr(X, "columns"):
        X = np.asarray(numbers(X, arguments.data))
    return divided(checked(X, arguments.data), model, table.image_shape), table


def input_of(model, arguments):
    """What a saved model reads of a file, and u where it is there."""
    if not isinstance(model, Pipeline):
        X, table = rows_for(model, arguments)
        return X, {} if table.u is None else {"u": table.u}
    if not is_text(arguments.data):
        raise ValueError(
            f"{arguments.model} was trained on text, and {arguments.data} is a table."
        )
    return documents_of(arguments), {}


def run_transform(arguments):
    """Write or print the latents."""
    output = arguments.output
    if output is not None:
        check_writable(output)
        if Path(output).suffix not in WRITERS:
            raise ValueError(f"{output}: latents are written as {', '.join(WRITERS)}.")
    model = load(arguments.model)
    X, options = input_of(model, arguments)
    Z = model.transform(X, **options)
    if output is None:
        write_csv(sys.stdout, model, Z)
        return
    with replaced(output) as temporary:
        WRITERS[Path(output).suffix](temporary, model, Z)
    print(f"Latents of {len(Z):,} rows: {output}")


def write_csv(file, model, Z):
    header = ",".join(model.get_feature_names_out())
    np.savetxt(file, Z, fmt="%.7g", delimiter=",", header=header, comments="")


def write_npy(path, model, Z):
    np.save(path, Z)


WRITERS = {".npy": write_npy, ".csv": write_csv}


def run_score(arguments):
    """Print the mean log-likelihood and its standard error."""
    model = load(arguments.model)
    X, options = input_of(model, arguments)
    scores = model.score_samples(X, **options)
    error = np.std(scores, ddof=1) / np.sqrt(len(scores)) if len(scores) > 1 else np.nan
    *before, network = model if isinstance(model, Pipeline) else [model]
    unit = "document" if before else "row"
    print(
        f"{np.mean(scores):.4f} +- {error:.4f} nats per {unit} ({len(scores):,} "
        f"{unit}s, {network.n_draws} draws each, standard error over {unit}s)"
    )
    if before:
        n_tokens = (model[:-1].transform(X) > 0).sum()
        print(f"Perplexity per token: {np.exp(-scores.sum() / n_tokens):.2f}")
