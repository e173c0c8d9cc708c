"""The tokenizer: numbers, text back, errors, and the pipelines it is made for."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator

from skvae import SkipSequenceVAE, Tokenizer

TEXTS = ["The cat sat.", "the dog sat on the cat", "A dog!", "don't sit, cat"]
PLAIN = ["the cat sat", "the dog sat on the cat"]


def test_words_are_numbered_by_frequency_then_alphabet():
    tokenizer = Tokenizer().fit(PLAIN)
    words = ["the", "cat", "sat", "dog", "on"]
    assert tokenizer.tokens_.tolist() == ["", "<unk>", "", *words]
    assert tokenizer.vocabulary_ == {"the": 3, "cat": 4, "sat": 5, "dog": 6, "on": 7}
    again = Tokenizer().fit(PLAIN[::-1])
    assert again.vocabulary_ == tokenizer.vocabulary_
    np.testing.assert_array_equal(
        tokenizer.transform(PLAIN), [[3, 4, 5, 2, 0, 0, 0], [3, 6, 5, 7, 3, 4, 2]]
    )


def test_text_comes_back():
    tokenizer = Tokenizer(lowercase=False)
    X = tokenizer.fit_transform(TEXTS)
    assert tokenizer.inverse_transform(X)[1] == TEXTS[1]
    assert tokenizer.inverse_transform(X)[2] == "A dog !"
    # What was written is what is read again, word for word.
    np.testing.assert_array_equal(
        tokenizer.transform(tokenizer.inverse_transform(X)), X
    )


@pytest.mark.parametrize("dtype", ["int64", "float32"])
def test_the_matrix_has_the_dtype_asked_for(dtype):
    texts = ["the cat sat", "the dog"]
    tokenizer = Tokenizer(dtype=dtype)
    X = tokenizer.fit_transform(texts)
    assert X.dtype == tokenizer.transform(texts).dtype == dtype
    np.testing.assert_array_equal(X, Tokenizer().fit_transform(texts))
    assert tokenizer.inverse_transform(X) == texts


def test_words_and_punctuation_are_tokens():
    tokens = Tokenizer().fit(TEXTS).vocabulary_
    assert {"don't", ",", ".", "!"} <= tokens.keys()
    assert Tokenizer(token_pattern=r"\S+").fit(TEXTS).vocabulary_.keys() >= {"sat."}
    assert "The" in Tokenizer(lowercase=False).fit(TEXTS).vocabulary_


def test_rare_words_are_unknown():
    tokenizer = Tokenizer(min_count=2).fit(PLAIN)
    assert tokenizer.vocabulary_.keys() == {"the", "cat", "sat"}
    assert tokenizer.transform(PLAIN[1:]).tolist() == [[3, 1, 5, 1, 3, 4, 2]]
    assert tokenizer.inverse_transform(tokenizer.transform(PLAIN[1:])) == [
        "the <unk> sat <unk> the cat"
    ]
    assert Tokenizer(max_vocabulary=2).fit(PLAIN).vocabulary_.keys() == {"the", "cat"}


def test_a_written_unknown_token_is_one():
    tokenizer = Tokenizer(token_pattern=r"\S+").fit(["a <unk> b", "a b"])
    assert tokenizer.vocabulary_.keys() == {"a", "b"}
    assert tokenizer.transform(["a <unk> b"]).tolist() == [[3, 1, 4, 2]]


def test_long_documents_lose_their_end():
    tokenizer = Tokenizer(max_length=3).fit(PLAIN)
    assert tokenizer.transform(PLAIN).tolist() == [[3, 4, 5], [3, 6, 5]]
    assert tokenizer.transform(["the cat"]).tolist() == [[3, 4, 2]]
    fitted = Tokenizer().fit(["a b"])
    assert fitted.transform(["a b a b"]).shape == (1, fitted.max_length_) == (1, 3)


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ("the cat", "single string"),
        (["the cat", "  "], "Document 1 is empty"),
        (["the cat", ""], "Document 1 is empty"),
        (["the cat", None], "number 1 is None"),
        (["the cat", 3.0], r"number 1 is 3\.0, of type float\. Replace missing"),
        (["the cat", b"a dog"], r"number 1 is b'a dog', of type bytes.*decode bytes"),
        (["the cat", ["a", "dog"]], r"number 1 is \['a', 'dog'\].*join lists"),
        (["the cat", float("nan")], r"number 1 is nan"),
        (["the cat", "\u00a0 \t\n"], "Document 1 is empty"),
        ([], "no documents"),
        (np.array([["the cat"], ["a dog"]]), "1 dimension"),
    ],
)
def test_bad_documents_are_named(documents, message):
    with pytest.raises(ValueError, match=message):
        Tokenizer().fit(documents)
    with pytest.raises(ValueError, match=message):
        Tokenizer().fit(PLAIN).transform(documents)


@pytest.mark.parametrize("documents", [5, None])
def test_what_holds_no_documents_is_told(documents):
    with pytest.raises(TypeError, match=rf"Got {documents}, of type .*pass a list"):
        Tokenizer().fit(documents)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("(", r"token_pattern='\(' is no regular"), (r"\w*", "matches the empty text")],
)
def test_patterns_that_find_no_tokens_are_told(pattern, message):
    with pytest.raises(ValueError, match=message):
        Tokenizer(token_pattern=pattern).fit(PLAIN)


def test_documents_left_without_words_by_min_count():
    with pytest.raises(ValueError, match=r"min_count=2 times, so every doc.*Lower"):
        Tokenizer(min_count=2).fit(["a b", "c d"])
    with pytest.raises(ValueError, match=r"Document 1 has no word.*'c d'.*min_count"):
        Tokenizer(min_count=2).fit(["a a", "c d"])


def test_documents_of_unknown_words_alone():
    tokenizer = Tokenizer().fit(PLAIN)
    with pytest.raises(ValueError, match=r"Document 1 has no word.*'quo vadis'"):
        tokenizer.transform(["the cat", "quo vadis"])
    kept = clone(tokenizer).set_params(handle_unknown="keep").fit(PLAIN)
    assert kept.transform(["quo vadis"])[0, :4].tolist() == [1, 1, 2, 0]
    with pytest.raises(ValueError, match="occurs at least min_count=9"):
        Tokenizer(min_count=9).fit(PLAIN)


def test_numbers_of_no_token_are_named():
    tokenizer = Tokenizer().fit(PLAIN)
    for X in ([[3, 99]], [[3, -1]], [[3, 3.5]]):
        with pytest.raises(ValueError, match=r"Row 0 holds .* in column [01], but"):
            tokenizer.inverse_transform(X)
    with pytest.raises(ValueError, match="2 axes"):
        tokenizer.inverse_transform([3, 4])


def test_is_a_transformer_of_scikit_learn():
    with pytest.warns(UserWarning, match=r"requires input\s+of type"):
        results = check_estimator(Tokenizer(), on_skip=None)
    assert all(result["status"] == "passed" for result in results)
    tokenizer = Tokenizer().set_output(transform="pandas")
    frame = tokenizer.fit_transform(PLAIN)
    assert list(frame.columns) == list(tokenizer.get_feature_names_out())
    assert frame.columns[0] == "tokenizer0"
    with pytest.raises(ValueError, match="min_count"):
        Tokenizer(min_count=0).fit(PLAIN)
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.inverse_transform(frame) == PLAIN


def test_text_goes_through_a_pipeline_and_back():
    rng = np.random.default_rng(0)
    y = np.arange(120) % 2
    words = np.array([["good", "great", "fine"], ["bad", "poor", "awful"]])
    texts = [
        " ".join(["it", "is", *words[label][rng.integers(3, size=4)]]) for label in y
    ]
    vae = SkipSequenceVAE(
        1,
        beta=0.2,
        width=16,
        embedding_size=8,
        max_iter=25,
        learning_rate=0.01,
        random_state=0,
    )
    both = make_pipeline(Tokenizer(), clone(vae), LogisticRegression())
    assert both.fit(texts[:100], y[:100]).score(texts[100:], y[100:]) == 1.0
    pipe = both[:-1]
    Z = pipe.transform(texts[:20])
    written = pipe.inverse_transform(Z)
    assert all(text.startswith("it is") for text in written)
    for text, label in zip(written, y, strict=False):
        assert set(text.split()[2:]) <= set(words[label])
    drawn = pipe[0].inverse_transform(pipe[-1].sample(50, random_state=0))
    # By chance one in sixty-four would.
    assert np.mean([text.startswith("it is") for text in drawn]) > 0.3
    assert pipe[-1].perplexity(pipe[0].transform(texts)) < 3.0
