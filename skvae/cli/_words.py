"""What the numbers of a comparison say, in sentences computed from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import skvae
from skvae.cli._data import Prepared
from skvae.displays import forecast_for

# Components below this carry next to nothing, whatever their variance.
FAINT = 0.01


@dataclass(frozen=True)
class Forecast:
    """The forecast of a comparison; `exact` if it is for a linear decoder."""

    kl: np.ndarray
    n_active: int
    exact: bool

    @classmethod
    def of(cls, estimator, data: Prepared):
        """Forecast for the training rows at the estimator's beta; none of documents."""
        if data.texts is not None:
            return None
        found = forecast_for(estimator, data.X)
        exact = data.comparable_density
        return cls(found.kl_per_component, found.n_active, exact)

    @property
    def basis(self):
        if self.exact:
            return "exact for a linear decoder"
        return "second order around the mean of X, a rough guide"


def listed(words):
    """``a, b and c``."""
    words = list(words)
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def counted(n, noun):
    return f"{n} {noun}" + ("" if n == 1 else "s")


def _activity(models, unit):
    k = models[0].n_components
    groups = {}
    for model in models:
        groups.setdefault(model.active, []).append(model.name)
    parts = [
        f"{listed(names)} kept {'all ' if count == k else ''}{count}"
        for count, names in sorted(groups.items(), key=lambda item: -item[0])
    ]
    return f"Of {counted(k, 'latent')}, {listed(parts)} active on held-out {unit}s."


def _probe(data, results):
    rows = [r for r in results if r.probe is not None and r.n_components]
    if not rows:
        return None
    best = max(rows, key=lambda r: r.probe)

    def score_of(result):
        return (
            f"{100 * result.probe:.1f}%" if data.classes else f"R2 {result.probe:.3f}"
        )

    text = f"A linear probe reads the labels best from {best.name} ({score_of(best)}"
    yardsticks = [
        f"{score_of(r)} from {r.name}"
        for r in results
        if r.probe is not None and not r.is_model and r is not best
    ]
    text += f"; {listed(yardsticks)})" if yardsticks else ")"
    close = [
        r
        for r in rows
        if r is not best
        and best.probe_error
        and best.probe - r.probe < best.probe_error
    ]
    models = [r for r in rows if r.is_model]
    if models and not best.is_model:
        own = max(models, key=lambda r: r.probe)
        text += f"; of the estimators, {own.name} comes closest with {score_of(own)}"
        text += ", within one standard error" if own in close else ""
        close = [r for r in close if r is not own]
    if close:
        text += f"; {listed(r.name for r in close)} "
        text += f"{'is' if len(close) == 1 else 'are'} within one standard error"
    return text + "."


def _agreement(models, forecast):
    if forecast is None:
        return None
    reference = next((m for m in models if not m.with_labels), models[0])
    n, k = forecast.n_active, reference.n_components
    total = float(np.sum(forecast.kl))
    text = (
        f"Before training, the spectrum of X foretold {n} of {k} alive and "
        f"{total:.1f} nats ({forecast.basis}); {reference.name} came to "
        f"{reference.active} and {reference.kl:.1f} nats"
    )
    return f"{text}{_differences(reference.active - n, reference.kl - total, total)}."


def _differences(components, nats, foretold):
    """How a forecast came out, or nothing where it is infinite."""
    if not np.isfinite(nats):
        return ""
    if components:
        more = "more" if components > 0 else "fewer"
        alive = f"{abs(components)} {more} alive than foretold"
    else:
        alive = "as many alive as foretold"
    if abs(nats) <= max(0.15 * foretold, 0.1):
        return f": {alive}, with about the nats of a linear decoder"
    more = "more" if nats > 0 else "fewer"
    return f": {alive}, with {abs(nats):.1f} nats {more} than a linear decoder's"


def _density(results, unit):
    rows = [r for r in results if r.log_density is not None]
    best, *others = sorted(rows, key=lambda r: -r.log_density)
    text = (
        f"{best.name} gives held-out {unit}s the highest likelihood, "
        f"{best.log_density:.2f} nats each"
    )
    if others:
        lead = best.densities - others[0].densities
        error = np.std(lead, ddof=1) / np.sqrt(len(lead))
        text += (
            f", {np.mean(lead):.2f} more than {others[0].name} (standard error of the "
            f"difference {error:.2f})"
        )
    linear = [r for r in rows if not r.is_model]
    if linear and not best.is_model:
        floor = "a linear model" if best.n_tokens is None else "counting words"
        text += (
            f": no estimator here beats {floor}, so look at noise, epochs and "
            "width before reading anything into the latents"
        )
    return text + "."


def summary(data: Prepared, results, forecast):
    """Sentences for a reader who has not seen the table."""
    models = [r for r in results if r.is_model]
    if not models:
        return []
    sentences = [_activity(models, data.unit), _probe(data, results)]
    sentences += [_agreement(models, forecast), _density(results, data.unit)]
    return [sentence for sentence in sentences if sentence]


def collapse_warnings(result):
    return [w for w in result.warnings if isinstance(w, skvae.PosteriorCollapseWarning)]


def notes_on(data: Prepared, results):
    """Short notes under the table: labels, collapse, other warnings, failures."""
    notes = []
    if any(r.with_labels for r in results):
        notes.append(
            "+ saw the training labels as u; latents and scores of held-out rows are "
            "computed without labels. Its KL is to p(z|u) and leaves out what u tells."
        )
    dead = [
        f"{r.name} {r.collapsed} of {r.n_components}" for r in results if r.collapsed
    ]
    if dead:
        notes.append(f"Collapsed on training {data.unit}s: {', '.join(dead)}.")
    shared = {}
    for result in results:
        collapse = collapse_warnings(result)
        for warning in result.warnings:
            if warning not in collapse:
                names = shared.setdefault(" ".join(str(warning).split()), [])
                names += [] if result.name in names else [result.name]
    notes += [f"{', '.join(names)}: {text}" for text, names in shared.items()]
    notes += [f"{r.name} failed: {r.failure}" for r in results if r.failure]
    return notes
