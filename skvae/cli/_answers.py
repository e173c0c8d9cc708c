"""``skvae forecast`` and ``skvae list``: answers without training."""

from __future__ import annotations

import inspect
import re

import numpy as np

import skvae
from skvae.cli._data import ROWS, check_finite, domain_of, scaled_to_unit
from skvae.cli._files import numbers, read_table
from skvae.cli._parameters import estimator_class, known_estimators
from skvae.cli._terminal import print_table, say
from skvae.displays import forecast_for


def run_forecast(arguments):
    """Print which components will live, and up to which beta."""
    table = read_table(arguments.data, arguments.target)
    X = np.asarray(numbers(table.X, arguments.data))
    if len(X) > ROWS:
        X = X[np.linspace(0, len(X) - 1, ROWS).astype(int)]
        say(f"{ROWS:,} of {len(table.X):,} rows are enough for a forecast.")
    check_finite(X, arguments.data, list(getattr(table.X, "columns", [])) or None)
    domain = domain_of(arguments.likelihood)
    X, divided = scaled_to_unit(X, arguments.likelihood, table.image_shape)
    if divided:
        say("Grey levels are divided by 255.")
    X = X.astype(np.float64)
    k = min(arguments.n_components, X.shape[1])
    if arguments.noise_variance is not None:
        if domain != "real":
            raise ValueError(
                "--noise-variance has no meaning for the likelihood "
                f"{arguments.likelihood}."
            )
        forecast = skvae.collapse_forecast(
            X,
            beta=arguments.beta,
            noise_variance=arguments.noise_variance,
            n_components=k,
        )
    else:
        model = skvae.VAE(k, beta=arguments.beta, likelihood=arguments.likelihood)
        forecast = forecast_for(model, X)
    print_forecast(forecast, k, domain)


def print_forecast(forecast, k, domain):
    rows = [
        [
            str(i),
            f"{forecast.eigenvalues[i]:.4g}",
            f"{forecast.kl_per_component[i]:.3f}",
            "lives" if i < forecast.n_active else "collapses",
            f"{forecast.max_beta(i + 1):.3g}",
        ]
        for i in range(min(k, len(forecast.eigenvalues)))
    ]
    headers = ["component", "eigenvalue", "KL in nats", "forecast", "lives below beta"]
    print_table(headers, rows)
    noise = "learned" if forecast.learned_noise else "fixed"
    print(
        f"\n{forecast.n_active} of {k} components live at beta {forecast.beta:g}, with "
        f"{noise} noise variance {forecast.noise_variance:.4g}."
    )
    print(
        "Exact for a linear decoder with Gaussian noise, a forecast otherwise."
        if domain == "real"
        else "Second order around the mean of X (features in units of the deviation "
        "that the likelihood gives them there): a rough guide."
    )


def section(cls, name):
    """The lines of a section of a docstring."""
    lines = inspect.getdoc(cls).splitlines()
    start = next(
        (
            i
            for i, line in enumerate(lines)
            if line == name and set(lines[i + 1]) == {"-"}
        ),
        None,
    )
    if start is None:
        return ""
    rest = lines[start + 2 :]
    stop = next((i for i, line in enumerate(rest) if line and set(line) == {"-"}), None)
    return "\n".join(rest if stop is None else rest[: stop - 1]).strip()


def papers(cls):
    """``Kingma, Welling 2014`` for each reference of a docstring."""
    found = []
    for paragraph in section(cls, "References").split("\n\n"):
        text = " ".join(paragraph.split())
        authors, _, rest = text.partition(', "')
        year = re.search(r"\b(?:19|20)\d\d\b", rest)
        if not year:
            continue
        names = authors.split(", ")
        short = authors if len(names) < 3 else f"{names[0]} et al."
        found.append(f"{short} {year.group()}")
    return "; ".join(found)


def first_line(thing):
    return inspect.getdoc(thing).splitlines()[0]


def run_list(arguments):
    """Print the estimators with their papers, the likelihoods and the networks.

    With the name of an estimator, its parameters.
    """
    if arguments.estimator is not None:
        cls = estimator_class(arguments.estimator)
        print(f"{cls.__name__}: {first_line(cls)}\n")
        print(section(cls, "Parameters"))
        return
    from skvae.likelihoods import LIKELIHOODS
    from skvae.networks import DECODERS, ENCODERS

    print("Estimators")
    for cls in known_estimators().values():
        print(f"  {cls.__name__:<16} {first_line(cls)}")
        print(f"  {'':<16} {papers(cls)}")
    tables = {"Likelihoods": LIKELIHOODS, "Encoders": ENCODERS, "Decoders": DECODERS}
    for title, table in tables.items():
        print(f"\n{title}")
        for name, part in table.items():
            print(f"  {name:<18} {first_line(part)}")
