"""The page of a comparison: one HTML file that needs nothing else."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from html import escape

import skvae
from skvae.cli import _figures
from skvae.cli._columns import cells, columns
from skvae.cli._style import STYLE
from skvae.cli._words import collapse_warnings, notes_on, summary

LIBRARIES = ("torch", "scikit-learn", "numpy", "scipy", "matplotlib")


def picture(svg, alt, caption=""):
    """A figure whose text for screen readers is `alt`."""
    caption = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    alt = escape(alt, quote=True)
    return f'<figure><div role="img" aria-label="{alt}">{svg}</div>{caption}</figure>'


def grid(pictures, kind):
    return f'<div class="grid {kind}">{"".join(pictures)}</div>'


def wide(picture):
    """A picture of the page's width, which narrow screens scroll."""
    return f'<div class="scroll wide">{picture}</div>'


def paragraphs(texts, css=""):
    css = f' class="{css}"' if css else ""
    return "".join(f"<p{css}>{escape(text)}</p>" for text in texts)


def section(title, *content, lead=""):
    lead = f'<p class="lead">{escape(lead)}</p>' if lead else ""
    return f"<section><h2>{escape(title)}</h2>{lead}{''.join(content)}</section>"


def table(data, results):
    """The numbers, best values in bold."""
    chosen = columns(data, results)
    rows, best = cells(chosen, results)
    head = "".join(
        f'<th scope="col" title="{escape(column.meaning, quote=True)}">'
        f"{escape(column.header)}</th>"
        for column in chosen
    )
    body = []
    for i, (result, row) in enumerate(zip(results, rows, strict=True)):
        swatch = f'<i style="background:{result.color}"></i>'
        line = f'<th scope="row">{swatch}{escape(row[0])}</th>'
        for j, text in enumerate(row[1:], start=1):
            text = escape(text)
            line += f"<td><b>{text}</b></td>" if (i, j) in best else f"<td>{text}</td>"
        kind = "model" if result.is_model else "baseline"
        body.append(f'<tr class="{kind}">{line}</tr>')
    return (
        '<div class="scroll"><table><thead><tr><th scope="col">method</th>'
        f"{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def notes(data, results):
    """Choices, labels, collapse; the full warnings to unfold."""
    items = [*data.notes, *notes_on(data, results)]
    text = "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"
    full = [str(w) for result in results for w in collapse_warnings(result)]
    if full:
        text += "<details><summary>What the collapse warnings said</summary>"
        text += paragraphs(full) + "</details>"
    return text


def forecast_section(models, forecast):
    pictures = [
        picture(
            svg,
            f"{model.name}: KL per component after training is "
            + ", ".join(f"{kl:.2f}" for kl in model.estimator.kl_per_component_)
            + " nats; the forecast was "
            + ", ".join(f"{kl:.2f}" for kl in forecast.kl)
            + ".",
        )
        for model, svg in _figures.kl_pictures(models, forecast)
    ]
    kind = (
        "Computed from the covariance of X alone with learned noise; exact if the "
        "decoder were linear."
        if forecast.exact
        else "The likelihood is not Gaussian, so this is a rough guide: the likelihood "
        "is replaced by its second-order expansion around the mean of X, where a "
        "decoder is linear."
    )
    return section(
        "Which latents live: forecast and fact",
        grid(pictures, "medium"),
        lead="Bars: KL of each latent after training, largest first; pale bars are "
        f"inactive. Dots: the forecast made before training. {kind} Models trained "
        "with labels measure their KL from p(z|u), which leaves out what the label "
        "tells.",
    )


def curve_section(models):
    last = ", ".join(f"{m.name} {-m.estimator.loss_curve_[-1]:.2f}" for m in models)
    alt = f"Training curves in nats per row; the last values are {last}."
    return section(
        "Training",
        wide(picture(_figures.curve_picture(models), alt)),
        lead="Objective by epoch, higher is better; the first tenth is cut off where "
        "it leaves the frame. A curve that still rises at the end wants more epochs "
        "(--max-iter). Models trained with labels bound log p(x|u) here, which lies "
        "above the others' log p(x).",
    )


def scatter_section(results, data):
    legend = "".join(
        f'<span><i style="background:{color}"></i>{escape(name)}</span>'
        for name, color in _figures.legend_of(data)
    )
    pictures = [
        picture(svg, f"{r.name}: held-out rows in the plane of components 0 and 1.")
        for r, svg in _figures.scatter_pictures(results, data)
    ]
    if not pictures:
        return ""
    return section(
        "Held-out rows in the first two latents",
        f'<p class="legend">{legend}</p>' if legend else "",
        grid(pictures, "small"),
        lead="Components are ordered by KL (by variance for PCA). Two of them show a "
        "part of the picture; the probes in the table use all.",
    )


def traversal_section(results, models, data):
    are_images = data.image_shape is not None
    what = "changes of the features" if not are_images else "decoded images"
    pictures = [
        picture(
            svg,
            f"{model.name}: {what} as one component after the other moves from low to "
            "high while the rest stay at their mean.",
        )
        for model, svg in _figures.traversal_pictures(models, data)
    ]
    content = [grid(pictures, "medium")]
    if are_images:
        alt = "First row: held-out images. Below, what each method decodes from its "
        alt += f"{models[0].n_components} numbers per image."
        images = _figures.reconstruction_picture(results, data)
        content.insert(0, wide(picture(images, alt)))
    lead = (
        "Above, held-out images and their reconstructions. Below, each row moves one "
        "component two standard deviations to either side; a row in which nothing "
        "changes is a latent that the decoder ignores."
        if are_images
        else "How far each feature moves, in the units of the model, when one "
        "component goes from two standard deviations below its mean to two above. A "
        "blank column is a latent that the decoder ignores."
    )
    return section("What the latents mean to the decoder", *content, lead=lead)


def reading_section(data, results):
    """How to read the table, with the caveats of each number."""
    terms = [
        (column.header, f"{column.meaning[0].upper()}{column.meaning[1:]}.")
        for column in columns(data, results)
    ]
    more = {
        "active": "The threshold is a variance of 0.01, so an active latent may still "
        "carry next to nothing: read the KL beside it.",
        "log p(x)": "A lower bound in expectation, from about 100 draws a row on up to "
        "500 rows. For grey levels under a Bernoulli likelihood it is a cross-entropy "
        "and no density. Linear baselines have one only where the likelihood is "
        "Gaussian.",
        "KL": "More is not better: it is what the latents cost. A mutual information "
        "far below it is paid for nothing.",
        "MI": "Estimated from the standard deviations of the posteriors; correlations "
        "within a posterior are left out.",
        "slope": "In units of X or of logits per unit of latent. A positive number "
        "proves that no two codes decode to the same thing.",
        "probe": "Logistic regression on standardised latents, fitted on training rows "
        "and scored on held-out ones.",
    }
    items = "".join(
        f"<dt>{escape(header)}</dt>"
        f"<dd>{escape(text)} {escape(more.get(header.split(' (')[0], ''))}</dd>"
        for header, text in terms
    )
    closing = (
        "One seed and one split decide these numbers. Differences of a standard error "
        "or two are noise: repeat with other seeds (--seed) before choosing a method."
    )
    return section("How to read this", f"<dl>{items}</dl>", paragraphs([closing]))


def origin(data, command, arguments, seconds, models):
    """Everything needed to make the page again."""
    found = [f"skvae {skvae.__version__}", f"Python {platform.python_version()}"]
    found += [f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES]
    shared = models[0].estimator
    facts = [
        ("command", command),
        ("rows", f"{len(data.X):,} training, {len(data.X_test):,} held out"),
        ("features", str(data.X.shape[1])),
        ("likelihood", data.likelihood),
        (
            "training",
            f"{shared.n_iter_} epochs, batches of {shared.batch_size}, width "
            f"{shared.width}, depth {shared.depth}, beta {shared.beta:g}, restarts "
            f"{shared.n_init}",
        ),
        ("seed", str(arguments.seed)),
        ("time", f"{seconds:.0f} s in all, on {datetime.date.today():%d %B %Y}"),
        ("versions", ", ".join(found)),
    ]
    items = "".join(
        f"<dt>{escape(name)}</dt><dd><code>{escape(text)}</code></dd>"
        if name == "command"
        else f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>"
        for name, text in facts
    )
    return section("Where this comes from", f'<dl class="facts">{items}</dl>')


def page(data, results, forecast, *, command, arguments, seconds):
    """The whole page as text."""
    models = [result for result in results if result.is_model]
    k = models[0].n_components
    subtitle = (
        f"{len(models)} estimators with {k} latents, {len(data.X):,} training rows, "
        f"{len(data.X_test):,} held-out rows, {data.X.shape[1]} features, "
        f"{data.likelihood} likelihood"
    )
    body = [
        f"<header><h1>Latents of {escape(data.title)}, compared</h1>",
        f'<p class="sub">{escape(subtitle)}</p></header>',
        f'<p class="summary">{escape(" ".join(summary(data, results, forecast)))}</p>',
        section("The numbers", table(data, results), notes(data, results)),
        forecast_section(models, forecast),
        curve_section(models),
        scatter_section([r for r in results if r.Z_test is not None], data),
        traversal_section(results, models, data),
        reading_section(data, results),
        origin(data, command, arguments, seconds, models),
    ]
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>skvae: {escape(data.title)}</title>"
        f"<style>{STYLE}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


__all__ = ["page"]
