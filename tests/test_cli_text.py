"""The comparison of documents, run in this process on a tiny corpus."""

import contextlib
import gzip
import io
import os
import re
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline

import skvae
from skvae.cli import main
from skvae.cli._documents import prepare_documents, word_frequencies
from skvae.cli._files import read_documents
from skvae.cli._page_text import numbered, shortened, shown_documents
from skvae.cli._parser import parse
from skvae.probes import linear_probe

WORDS = {"1": ["good", "great", "fine"], "0": ["bad", "poor", "awful"]}
MODELS = ["SequenceVAE", "SkipSequenceVAE", "LIDSVAE"]
SMALL = ["--max-iter", "3", "--width", "8", "-k", "3"]


def run(*argv):
    """Exit code, standard output and standard error of one command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(map(str, argv)))
    return code, out.getvalue(), err.getvalue()


def ran(*argv):
    code, out, err = run(*argv)
    assert code == 0, err
    return out, err


def table_of(text):
    """The cells of each row by the header above; stars of the best left out."""
    lines = text.splitlines()
    rule = next(i for i, line in enumerate(lines) if re.fullmatch("-{10,}", line))
    headers = re.split(r" {2,}", lines[rule - 1].strip())
    rows = {}
    for line in lines[rule + 1 :]:
        if not line.strip():
            break
        name, *values = re.split(r" {2,}|\* *", line.strip())
        rows[name] = dict(zip(headers[1:], values, strict=False))
    return rows


def reviews(n=120):
    """Labels and short documents whose adjectives tell the label."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(n):
        label = str(number % 2)
        words = rng.choice(WORDS[label], size=rng.integers(2, 5))
        found.append((label, f"the food is {' and '.join(words)} ."))
    return found


def write(path, lines):
    text = "\n".join(lines) + "\n"
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode("utf-8")))
    else:
        path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts")
    rows = reviews()
    write(path / "labelled.tsv.gz", [f"{label}\t{text}" for label, text in rows])
    write(path / "plain.txt", [text for _, text in rows])
    return path


@pytest.fixture(scope="module")
def compared(folder):
    """Output and page of one comparison of everything."""
    page = folder / "page.html"
    argv = ["--data", folder / "labelled.tsv.gz", *SMALL]
    out, err = ran("compare", *argv, "-o", page)
    return out, err, page.read_text("utf-8")


def prepared(path, *options):
    return prepare_documents(parse(["compare", "--data", str(path), *options]))


@pytest.fixture(scope="module")
def data(folder):
    return prepared(folder / "labelled.tsv.gz")


# The table


def test_every_method_has_a_row(compared):
    rows = table_of(compared[0])
    assert list(rows) == ["word frequencies", "TF-IDF", "TF-IDF + SVD", *MODELS]
    for name in MODELS:
        assert re.fullmatch(r"[0-3]/3", rows[name]["active"])
        assert (rows[name]["slope"] != "-") == (name == "LIDSVAE")
    assert rows["word frequencies"]["probe"] == rows["TF-IDF"]["NLL"] == "-"
    assert "probe reads the labels" in compared[0]
    assert "log p(x)" not in compared[0]


@pytest.mark.filterwarnings("ignore::skvae.PosteriorCollapseWarning")
def test_row_of_a_model_is_what_the_library_says(compared, data):
    vae = skvae.SequenceVAE(
        3,
        width=8,
        embedding_size=8,
        dropout=0.3,
        n_tokens=len(data.texts.tokenizer.tokens_),
        max_iter=3,
        batch_size=8,
        learning_rate=2e-3,
        n_draws=20,
        random_state=0,
    ).fit(data.X)
    row = table_of(compared[0])["SequenceVAE"]
    perplexity = vae.perplexity(data.X_test)
    assert row["perplexity"] == f"{perplexity:.1f}"
    assert row["per token"] == f"{np.log(perplexity):.3f}"
    assert row["NLL"] == f"{-vae.score(data.X_test):.2f}"
    assert row["KL"] == f"{vae.kl_per_component_.sum():.2f}"
    probe = linear_probe().fit(vae.transform(data.X), data.y)
    score = probe.score(vae.transform(data.X_test), data.y_test)
    assert row["probe"] == f"{100 * score:.1f}%"


def test_word_frequencies_are_counted(compared, data):
    counts = Counter()
    for text in data.texts.train:
        counts.update([*re.findall(r"\w+|\.", text), "END"])
    # All of the vocabulary and the unknown token, each once more than seen.
    total = sum(counts.values()) + len(counts) + 1
    assert np.exp(word_frequencies(data)[1:]).sum() == pytest.approx(1.0)
    nats, n_tokens = 0.0, 0
    for text in data.texts.test:
        for word in [*re.findall(r"\w+|\.", text), "END"]:
            nats -= np.log((counts[word] + 1) / total)
            n_tokens += 1
    row = table_of(compared[0])["word frequencies"]
    assert row["perplexity"] == f"{np.exp(nats / n_tokens):.1f}"
    assert row["NLL"] == f"{nats / len(data.texts.test):.2f}"


def test_baselines_are_what_they_say(compared, data):
    pattern = r"\w+(?:['-]\w+)*|[^\w\s]"
    counts = TfidfVectorizer(token_pattern=pattern)
    words = counts.fit_transform(data.texts.train)
    svd = TruncatedSVD(3, random_state=0).fit(words)
    probe = linear_probe().fit(svd.transform(words), data.y)
    test = svd.transform(counts.transform(data.texts.test))
    score = probe.score(test, data.y_test)
    rows = table_of(compared[0])
    assert rows["TF-IDF + SVD"]["probe"] == f"{100 * score:.1f}%"
    # One adjective tells the label.
    assert rows["TF-IDF"]["probe"] == "100.0%"


def test_what_was_chosen_is_said(compared):
    _, err, _ = compared
    assert "90 training and 30 held-out documents" in err
    assert re.search(r"\d+ words are known", err)
    for name in MODELS:
        assert re.search(rf"^{name}: [\d.]+ s$", err, re.MULTILINE)


def test_same_seed_same_table(folder):
    argv = ["compare", "--data", folder / "plain.txt", "--no-page", *SMALL]
    argv += ["--methods", "SkipSequenceVAE", "--rows", 60, "--seed"]
    found = [table_of(ran(*argv, seed)[0])["SkipSequenceVAE"] for seed in (1, 1, 2)]
    assert found[0]["NLL"] == found[1]["NLL"] != found[2]["NLL"]


def test_without_labels_there_are_no_probes(folder):
    argv = ["--data", folder / "plain.txt", "--no-page", *SMALL]
    out, err = ran("compare", *argv, "--methods", "LIDSVAE,SequenceVAE")
    assert list(table_of(out)) == ["word frequencies", "LIDSVAE", "SequenceVAE"]
    assert "probe" not in out
    assert "No labels" in err


# The file


@pytest.mark.parametrize("name", ["a.tsv", "a.tsv.gz", "a.txt", "a.txt.gz", "A.TSV"])
def test_labels_stand_before_a_tab(tmp_path, name):
    lines = ["yes\tthe cat\tand the dog", "", "no\ta dog"]
    texts, y = read_documents(write(tmp_path / name, lines))
    assert texts == ["the cat\tand the dog", "a dog"]
    assert y == ["yes", "no"]


def test_a_tab_in_some_lines_of_plain_text_is_white_space(tmp_path):
    lines = ["the\tcat", "a dog"]
    assert read_documents(write(tmp_path / "a.txt", lines)) == (lines, None)
    with pytest.raises(ValueError, match="line 2 has no tab"):
        read_documents(write(tmp_path / "a.tsv", lines))


def test_labels_are_numbers_where_all_are(tmp_path):
    rows = reviews(40)
    for path, labels, kind, classes in [
        ("a.tsv", [label for label, _ in rows], "i", True),
        ("b.tsv", ["pos" if label == "1" else "neg" for label, _ in rows], "U", True),
        ("c.tsv", [f"{0.37 * i:.2f}" for i in range(40)], "f", False),
    ]:
        texts = [text for _, text in rows]
        lines = map("\t".join, zip(labels, texts, strict=True))
        found = prepared(write(tmp_path / path, lines))
        assert found.y.dtype.kind == kind
        assert found.classes is classes


def test_empty_lines_long_documents_and_many_are_told(tmp_path):
    texts = [text for _, text in reviews(60)]
    path = write(tmp_path / "a.txt", [*texts, "", "   ", "good " * 8])
    found = prepared(path, "--rows", "45")
    assert "2 empty lines were left out." in found.notes
    assert "60 of 61 documents were drawn (--rows 45)." in found.notes
    assert len(found.X) == 45
    # No empty document is left.
    assert (found.X[:, 0] > 0).all()
    long = prepared(write(path, ["good " * n for n in range(50, 80)]))
    n = sum(text.count("good") + 1 > 60 for text in long.texts.train)
    assert long.X.shape == (22, 60)
    told = f"{n} training documents are longer than 60 tokens and lost their ends."
    assert told in long.notes


def test_marks_of_a_corpus_hold(tmp_path):
    lines = [f"the <unk> costs N don't-know-{i % 2}" for i in range(40)]
    found = prepared(write(tmp_path / "a.txt", lines))
    assert "Split at white space, because the text holds <unk>." in found.notes
    assert found.texts.tokenizer.vocabulary_.keys() == {
        *("the", "costs", "n", "don't-know-0", "don't-know-1")
    }
    assert (found.X[:, 1] == 1).all()


def test_words_of_held_out_documents_that_are_not_known_are_counted(tmp_path):
    lines = [f"word{i}" for i in range(40)]
    found = prepared(write(tmp_path / "a.txt", lines))
    # Half the tokens are the ends of documents.
    assert any("50.0% of held-out tokens are unknown" in note for note in found.notes)


# The page


class Page(HTMLParser):
    """Words and tags, all of them closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.tags = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_page_shows_what_the_models_write(compared, data):
    page = Page(compared[2])
    words = " ".join(page.words)
    for title in (
        "Held-out documents and their reconstructions",
        "New documents",
        "From one document to another",
        "Which latents live",
        "Held-out documents in all latents, by t-SNE",
    ):
        assert title in words
    shown = data.texts.tokenizer.inverse_transform(
        data.X_test[shown_documents(data, 5)]
    )
    for text in shown:
        assert text in page.words
    # Two lists for each model, and one picture of its KL, one of its latents.
    assert sum(tag == "article" for tag, _ in page.tags) == 2 * len(MODELS)
    alternatives = [a["aria-label"] for _, a in page.tags if a.get("role") == "img"]
    for name in MODELS:
        assert sum(a.startswith(f"{name}: ") for a in alternatives) == 2
    assert "nats per document" in words
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    for row in table_of(compared[0]).values():
        assert all(value in words for value in row.values())


@pytest.mark.filterwarnings("ignore::skvae.PosteriorCollapseWarning")
def test_words_of_documents_are_escaped(tmp_path):
    lines = [f"<script>alert({i % 3})</script> & <unk>" for i in range(40)]
    path = write(tmp_path / "a.txt", lines)
    page = tmp_path / "page.html"
    ran("compare", "--data", path, "--methods", "SequenceVAE", *SMALL, "-o", page)
    text = page.read_text("utf-8")
    assert "script" not in {tag for tag, _ in Page(text).tags}
    assert "&lt;unk&gt;" in text


def test_equal_texts_in_succession_are_told_once():
    text = numbered(["a", "a", "b", "a"])
    assert re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", text) == [
        ("1\N{EN DASH}2", "a"),
        ("3", "b"),
        ("4", "a"),
    ]


def test_words_in_long_succession_are_counted():
    assert shortened("a a a a b b c") == "a (4 times) b b c"
    assert shortened("") == ""


def test_documents_of_known_words_are_shown(tmp_path):
    lines = ["one two three four five", "one two three four nine"] * 20
    found = prepared(write(tmp_path / "a.txt", lines))
    found.X_test[::2, 1] = 1
    rows = shown_documents(found, 3)
    assert len(rows) == 3
    assert not (found.X_test[rows] == 1).any()
    # Where all hold an unknown word, they are shown all the same.
    found.X_test[:, 1] = 1
    assert len(shown_documents(found, 3)) == 3


# Interruptions and mistakes


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.mark.parametrize("moment", ["fit", "draw", "write"])
def test_interruption_leaves_the_old_page_and_nothing_else(
    moment, folder, monkeypatch, tmp_path
):
    page = tmp_path / "page.html"
    page.write_text("the old page")
    if moment == "fit":
        monkeypatch.setattr(skvae.SequenceVAE, "fit", interrupt)
    elif moment == "draw":
        monkeypatch.setattr("skvae.cli._page_text.drawn", interrupt)
    else:
        monkeypatch.setattr(os, "replace", interrupt)
    argv = ["--data", folder / "plain.txt", "--methods", "SequenceVAE", *SMALL]
    code, _, err = run("compare", *argv, "-o", page)
    assert code == 130
    assert err.splitlines()[-1] == "skvae: interrupted; nothing was written."
    assert page.read_text() == "the old page"
    assert os.listdir(tmp_path) == ["page.html"]


# fit, transform, score


@pytest.fixture(scope="module")
def model(folder):
    """A model of the labelled file, its output, and the texts it saw."""
    path = folder / "reviews.skvae"
    argv = ["SkipSequenceVAE", folder / "labelled.tsv.gz", "--n-components", "3"]
    argv += ["--width", "8", "--set", "embedding_size=8", "--max-iter", "3"]
    out, err = ran("fit", *argv, "--random-state", "0", "-o", path)
    return path, out, err, [text for _, text in reviews()]


@pytest.mark.filterwarnings("ignore::skvae.PosteriorCollapseWarning")
def test_a_model_of_documents_reads_text(model):
    path, out, err, texts = model
    assert "SkipSequenceVAE on 120 documents, 3 epochs" in out
    assert "occur at least 1 times" in err
    loaded = skvae.load(path)
    parameters = {"width": 8, "embedding_size": 8, "max_iter": 3, "random_state": 0}
    expected = make_pipeline(
        skvae.Tokenizer(dtype="float32"), skvae.SkipSequenceVAE(3, **parameters)
    ).fit(texts)
    np.testing.assert_array_equal(loaded.transform(texts), expected.transform(texts))


def test_latents_and_scores_of_documents(model, tmp_path):
    path, _, _, texts = model
    held_out = [*texts[:5], "", "the food is unheard of ."]
    data = write(tmp_path / "new.txt", held_out)
    pipeline = skvae.load(path)
    texts = [text for text in held_out if text]
    out, err = ran("transform", path, data)
    assert "1 empty lines were left out." in err
    found = np.loadtxt(io.StringIO(out), delimiter=",", skiprows=1)
    np.testing.assert_allclose(found, pipeline.transform(texts), rtol=1e-5, atol=1e-6)
    out, _ = ran("score", path, data)
    mean = pipeline.score_samples(texts).mean()
    assert out.startswith(f"{mean:.4f} ")
    assert "6 documents" in out
    perplexity = pipeline[-1].perplexity(pipeline[:-1].transform(texts))
    assert f"Perplexity per token: {perplexity:.2f}" in out


MODEL_MISTAKES = [
    (["fit", "VAE", "plain.txt"], "For text there are: SequenceVAE"),
    (["fit", "LIDSVAE", "plain.txt", "--u", "y"], "takes no auxiliary variable"),
    (["fit", "LIDSVAE", "plain.txt", "--target", "y"], "--target does not go"),
    (["fit", "LIDSVAE", "blank.txt"], "Tokenizer got no documents"),
    (["score", "reviews.skvae", "table.npy"], "trained on text, and table.npy is a"),
    (["transform", "table.skvae", "plain.txt"], "Text is for the sequence models"),
    (["report", "reviews.skvae", "plain.txt"], "report is for tables"),
]


@pytest.mark.filterwarnings("ignore::skvae.PosteriorCollapseWarning")
@pytest.mark.parametrize(("argv", "message"), MODEL_MISTAKES)
def test_tables_and_text_are_kept_apart(argv, message, model, mistaken, monkeypatch):
    monkeypatch.chdir(mistaken)
    X = np.random.default_rng(0).normal(size=(20, 3))
    np.save("table.npy", X)
    skvae.save(skvae.VAE(1, width=4, max_iter=1).fit(X), "table.skvae")
    before = sorted(os.listdir("."))
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]
    assert sorted(os.listdir(".")) == before


# Mistakes


MISTAKES = [
    (["--data", "none.txt"], "There is no file none.txt"),
    (["--data", "few.txt"], "2 rows are too few"),
    (["--data", "blank.txt"], "0 rows are too few"),
    (["--data", "blank.tsv"], "label, tab, text in every line, and there is no line"),
    (["--data", "mixed.tsv"], "line 3 has no tab. Name a file without labels .txt"),
    (["--data", "broken.txt.gz"], "broken.txt.gz cannot be read as UTF-8 text"),
    (["--data", "latin.txt"], "latin.txt cannot be read as UTF-8 text"),
    (["--data", "plain.txt", "--methods", "VAE"], "Unknown method 'VAE'"),
    (["--data", "plain.txt", "--methods", "LIDVAE"], "Did you mean 'LIDSVAE'?"),
    (["--data", "plain.txt", "--likelihood", "poisson"], "--likelihood does not go"),
    (["--data", "plain.txt", "--image-shape", "8,8"], "--image-shape does not go"),
    (["--data", "plain.txt", "--target", "y"], "--target does not go"),
    (["--data", "plain.txt", "--set", "depth=2"], "no parameter 'depth'"),
]


@pytest.fixture(scope="module")
def mistaken(folder):
    """A folder with files that are wrong in one way each."""
    write(folder / "few.txt", ["one two", "three"])
    write(folder / "blank.txt", ["", "  "])
    write(folder / "blank.tsv", ["", "  "])
    write(folder / "mixed.tsv", ["1\tone", "", "two", "0\tthree"])
    (folder / "broken.txt.gz").write_bytes(b"\x1f\x8b\x08 no archive")
    (folder / "latin.txt").write_bytes("schön\n".encode("latin-1") * 20)
    return folder


@pytest.mark.parametrize(("argv", "message"), MISTAKES)
def test_mistakes_are_told_in_one_line(argv, message, mistaken, monkeypatch):
    monkeypatch.chdir(mistaken)
    before = sorted(os.listdir("."))
    code, out, err = run("compare", *argv)
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err
    assert sorted(os.listdir(".")) == before
