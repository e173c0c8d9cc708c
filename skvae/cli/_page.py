"""The page of a comparison: one HTML file that needs nothing else."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from html import escape

import skvae
from skvae.cli import _figures, _page_text
from skvae.cli._columns import cells, columns
from skvae.cli._data import domain_of
from skvae.cli._style import STYLE
from skvae.cli._words import collapse_warnings, counted, notes_on, summary

CAVEATS = {
    "active": "The threshold is a variance of 0.01, so an active latent may still "
    "carry next to nothing: read the KL beside it.",
    "log p(x)": "A lower bound in expectation, from about 100 draws a row on up to 500 "
    "rows. For grey levels under a Bernoulli likelihood it is a cross-entropy and no "
    "density. Linear baselines have one only where the likelihood is Gaussian.",
    "NLL": "An upper bound in expectation, from 20 draws a document on up to 500 "
    "documents. Words that are not known count as one, so that other vocabularies "
    "give other numbers.",
    "KL": "More is not better: it is what the latents cost. A mutual information far "
    "below it is paid for nothing.",
    "MI": "Estimated from the standard deviations of the posteriors; correlations "
    "within a posterior are left out.",
    "slope": "In units of X, of logits, or of the log-probabilities of a token, per "
    "unit of latent. A positive number proves that no two codes decode to the same "
    "thing.",
    "probe": "Logistic regression on standardised latents, fitted on training rows and "
    "scored on held-out ones. Standardising blows up latents that have collapsed: a "
    "probe may read what the decoder ignores.",
}
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
    def words(kl):
        return ", ".join(f"{nats:.2f}" for nats in kl)

    foretold = "" if forecast is None else f"; the forecast was {words(forecast.kl)}"
    pictures = [
        picture(
            svg,
            f"{model.name}: KL per component after training is "
            f"{words(model.estimator.kl_per_component_)} nats{foretold}.",
        )
        for model, svg in _figures.kl_pictures(models, forecast)
    ]
    title, lead = "Which latents live", "Bars: KL of each latent after training, "
    lead += "largest first; pale bars are inactive."
    if forecast is None:
        return section(title, grid(pictures, "medium"), lead=lead)
    kind = (
        "Computed from the covariance of X alone with learned noise; exact if the "
        "decoder were linear."
        if forecast.exact
        else "The likelihood is not Gaussian, so this is a rough guide: the likelihood "
        "is replaced by its second-order expansion around the mean of X, where a "
        "decoder is linear."
    )
    return section(
        f"{title}: forecast and fact",
        grid(pictures, "medium"),
        lead=f"{lead} Dots: the forecast made before training. {kind} Models trained "
        "with labels measure their KL from p(z|u), which leaves out what the label "
        "tells.",
    )


def curve_section(models, data):
    last = ", ".join(f"{m.name} {-m.estimator.loss_curve_[-1]:.2f}" for m in models)
    alt = f"Training curves in nats per {data.unit}; the last values are {last}."
    lead = (
        "Objective by epoch, higher is better; the first tenth is cut off where it "
        "leaves the frame. A curve that still rises at the end wants more epochs "
        "(--max-iter)."
    )
    if any(m.with_labels for m in models):
        lead += " Models trained with labels bound log p(x|u) here, which lies above "
        lead += "the others' log p(x)."
    return section(
        "Training",
        wide(picture(_figures.curve_picture(models, data.unit), alt)),
        lead=lead,
    )


def scatter_section(results, data, seed, jobs):
    by_tsne = _figures.is_embedded(results, data)
    where = "all latents, by t-SNE" if by_tsne else "the plane of components 0 and 1"
    pictures = [
        picture(svg, f"{r.name}: held-out {data.unit}s in {where}.")
        for r, svg in _figures.scatter_pictures(results, data, seed, jobs)
    ]
    if not pictures:
        return ""
    legend = "".join(
        f'<span><i style="background:{color}"></i>{escape(name)}</span>'
        for name, color in _figures.legend_of(data)
    )
    lead = (
        "Neighbours in the latent space stay neighbours. Distances between clusters, "
        "their sizes and their densities tell nothing, and latents that have collapsed "
        "are blown up to clumps of the same size: read the table beside it."
        if by_tsne
        else "Components are ordered by KL (by variance for the baselines). Two of "
        "them show a part of the picture"
        + ("; the probes in the table use all." if data.probed else ".")
    )
    kind = "all latents, by t-SNE" if by_tsne else "the first two latents"
    return section(
        f"Held-out {data.unit}s in {kind}",
        f'<p class="legend">{legend}</p>' if legend else "",
        grid(pictures, "small"),
        lead=lead,
    )


def traversal_section(models, data):
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
    lead = (
        "Each row moves one component two standard deviations to either side; a row in "
        "which nothing changes is a latent that the decoder ignores."
        if are_images
        else "How far each feature moves, in the units of the model, when one "
        "component goes from two standard deviations below its mean to two above. A "
        "blank column is a latent that the decoder ignores."
    )
    title = "What the latents mean to the decoder"
    return section(title, grid(pictures, "medium"), lead=lead)


def image_sections(results, models, data, seed):
    """Reconstructions and draws; nothing where rows are no images."""
    if data.image_shape is None:
        return ""
    alt = "First row: held-out images. Below, what each method decodes from its "
    alt += f"{models[0].n_components} numbers per image."
    rebuilt = wide(picture(_figures.reconstruction_picture(results, data), alt))
    alt = "New images, a row for each of " + ", ".join(m.name for m in models) + "."
    drawn = wide(picture(_figures.sample_picture(models, data, seed), alt))
    pixels = (
        "Each pixel is drawn from its likelihood, so that a grey level shows as the "
        "share of white specks."
        if domain_of(data.likelihood) == "unit interval"
        else "Each pixel is drawn from its likelihood, noise included."
    )
    return section(
        "Held-out images and their reconstructions",
        rebuilt,
        lead="The mean of x that each method decodes from an image's latents.",
    ) + section("New images", drawn, lead=f"Draws from the prior, decoded. {pixels}")


def document_sections(models, data, seed):
    """Documents rebuilt, drawn, and on the way from one to another."""
    (first, last), line = _page_text.between(data, models)
    return "".join(
        [
            section(
                "Held-out documents and their reconstructions",
                _page_text.rebuilt(data, models),
                lead="What each decoder writes for the latents of a document, the "
                "likeliest token after those before it. A model whose latents have "
                "collapsed writes the same for all.",
            ),
            section(
                "New documents",
                _page_text.drawn(data, models, seed),
                lead="Latents drawn from the prior, then token after token, with the "
                "same random numbers for all.",
            ),
            section(
                "From one document to another",
                line,
                lead=f"Decoded at equal steps on the straight line between the latents "
                f"of \u201c{first}\u201d and \u201c{last}\u201d.",
            ),
        ]
    )


def reading_section(data, results):
    """How to read the table, with the caveats of each number."""
    terms = [
        (column.header, f"{column.meaning[0].upper()}{column.meaning[1:]}.")
        for column in columns(data, results)
    ]
    items = "".join(
        f"<dt>{escape(header)}</dt>"
        f"<dd>{escape(text)} {escape(CAVEATS.get(header.split(' (')[0], ''))}</dd>"
        for header, text in terms
    )
    closing = (
        "One seed and one split decide these numbers. Differences of a standard error "
        "or two are noise: repeat with other seeds (--seed) before choosing a method."
    )
    return section("How to read this", f"<dl>{items}</dl>", paragraphs([closing]))


def content(data):
    """What a row or a document is made of, and its likelihood."""
    if data.texts is None:
        return f"{data.X.shape[1]} features, {data.likelihood} likelihood"
    words = len(data.texts.tokenizer.vocabulary_)
    return f"up to {data.X.shape[1]} tokens each, {words:,} words"


def origin(data, command, arguments, seconds, models):
    """Everything needed to make the page again."""
    found = [f"skvae {skvae.__version__}", f"Python {platform.python_version()}"]
    found += [f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES]
    shared = models[0].estimator
    settings = {
        name: shared.get_params()[name]
        for name in ("width", "depth", "embedding_size", "dropout", "beta", "n_init")
        if name in shared.get_params()
    }
    facts = [
        ("command", command),
        (f"{data.unit}s", f"{len(data.X):,} training, {len(data.X_test):,} held out"),
        ("content", content(data)),
        (
            "training",
            f"{shared.n_iter_} epochs, batches of {shared.batch_size}, "
            + ", ".join(f"{name} {value:g}" for name, value in settings.items()),
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
    k, unit, seed = models[0].n_components, data.unit, arguments.seed
    subtitle = (
        f"{counted(len(models), 'estimator')} with {counted(k, 'latent')}, "
        f"{len(data.X):,} training {unit}s, {len(data.X_test):,} held-out {unit}s, "
        f"{content(data)}"
    )
    meaning = (
        image_sections(results, models, data, seed) + traversal_section(models, data)
        if data.texts is None
        else document_sections(models, data, seed)
    )
    embeddable = [result for result in results if result.Z_test is not None]
    body = [
        f"<header><h1>Latents of {escape(data.title)}, compared</h1>",
        f'<p class="sub">{escape(subtitle)}</p></header>',
        f'<p class="summary">{escape(" ".join(summary(data, results, forecast)))}</p>',
        section("The numbers", table(data, results), notes(data, results)),
        forecast_section(models, forecast),
        curve_section(models, data),
        scatter_section(embeddable, data, seed, arguments.jobs),
        meaning,
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
