"""The part of the page that shows documents: rebuilt, drawn and between two others."""

from __future__ import annotations

import itertools
from html import escape

import numpy as np

from skvae.cli._data import Prepared

N_REBUILT, N_DRAWN, N_STEPS = 5, 6, 7
# Shown documents are short, so that a reader can compare them.
SHORTEST, LONGEST = 5, 16
MOST_REPEATED = 3


def shown_documents(data: Prepared, n):
    """Row numbers of up to `n` held-out documents, of known words where there are."""
    lengths = (data.X_test > 0).sum(axis=1)
    fits = (lengths >= SHORTEST) & (lengths <= LONGEST)
    known = fits & ~(data.X_test == 1).any(axis=1)
    rows = next(np.flatnonzero(c) for c in (known, fits, lengths > 0) if c.any())
    return rows[np.unique(np.linspace(0, len(rows) - 1, n).astype(int))]


def ends(data: Prepared):
    """Two held-out documents, of different labels where there are any."""
    rows = shown_documents(data, len(data.X_test))
    first, last = rows[0], rows[-1]
    if data.y_test is not None:
        other = rows[data.y_test[rows] != data.y_test[first]]
        last = other[-1] if len(other) else last
    return [first, last]


def written(data: Prepared, tokens):
    """Texts of a token matrix; a document without words is said to be empty."""
    texts = data.texts.tokenizer.inverse_transform(tokens)
    return [shortened(text) or "(nothing)" for text in texts]


def shortened(text):
    """The text with words in long succession told once, and how often they came."""
    words = []
    for word, group in itertools.groupby(text.split()):
        n = len(list(group))
        words += [f"{word} ({n} times)"] if n > MOST_REPEATED else [word] * n
    return " ".join(words)


def named(result, text):
    """A method's name with its colour, and what it wrote."""
    swatch = f'<i style="background:{result.color}"></i>'
    return f"<dt>{swatch}{escape(result.name)}</dt><dd>{escape(text)}</dd>"


def rebuilt(data: Prepared, models):
    """Held-out documents and what each decoder writes for their latents."""
    rows = shown_documents(data, N_REBUILT)
    originals = written(data, data.X_test[rows])
    texts = [
        written(data, model.estimator.inverse_transform(model.Z_test[rows]))
        for model in models
    ]
    items = [
        f"<dl><dt>original</dt><dd><b>{escape(original)}</b></dd>"
        + "".join(
            named(model, text[number])
            for model, text in zip(models, texts, strict=True)
        )
        + "</dl>"
        for number, original in enumerate(originals)
    ]
    return f'<div class="texts">{"".join(items)}</div>'


def numbered(texts):
    """Texts with their numbers, equal ones in succession told once."""
    items, first = [], 0
    for text, group in itertools.groupby(texts):
        last = first + len(list(group))
        numbers = f"{first + 1}" if last == first + 1 else f"{first + 1}–{last}"  # noqa: RUF001
        items.append(f"<dt>{numbers}</dt><dd>{escape(text)}</dd>")
        first = last
    return f"<dl>{''.join(items)}</dl>"


def cards(models, texts):
    """A list of texts for each method."""
    items = [
        f'<article><h3><i style="background:{model.color}"></i>{escape(model.name)}'
        f"</h3>{numbered(found)}</article>"
        for model, found in zip(models, texts, strict=True)
    ]
    return f'<div class="grid medium texts">{"".join(items)}</div>'


def drawn(data: Prepared, models, seed):
    """New documents of each method."""
    return cards(
        models,
        [
            written(data, model.estimator.sample(N_DRAWN, random_state=seed))
            for model in models
        ],
    )


def between(data: Prepared, models):
    """What each decoder writes on the straight line between two documents."""
    rows = ends(data)
    share = np.linspace(0, 1, N_STEPS)[:, None]
    texts = []
    for model in models:
        first, last = model.Z_test[rows]
        line = (1 - share) * first + share * last
        texts.append(written(data, model.estimator.inverse_transform(line)))
    return written(data, data.X_test[rows]), cards(models, texts)
