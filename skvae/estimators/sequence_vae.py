"""SequenceVAE: an LSTM that reads a document, and one that writes it from z.

p(x|z) = prod_t p(x_t | x_<t, z); z stands beside every word vector that the decoder
reads and sets its first state (Bowman et al. 2016; He et al. 2019, for text).
"""

from __future__ import annotations

from skvae.estimators._sequences import BaseSequenceVAE, documented


@documented
class SequenceVAE(BaseSequenceVAE):
    """Variational autoencoder of token sequences.

    The baseline, and the classical place of posterior collapse: an LSTM predicts
    words well without z. KL warm-up, ``beta < 1``, word dropout, free bits and the
    inference procedures work against it here as everywhere.

    Parameters
    ----------
    n_components : int, default=32
        Number of latent variables.
    [shared parameters]

    Attributes
    ----------
    [shared attributes]

    See Also
    --------
    SkipSequenceVAE : The decoder reads z again before the softmax.
    LIDSVAE : Log-probabilities that tell any two codes apart.
    Tokenizer : Turns text into token matrices, and back.

    Notes
    -----
    X is a matrix of integers, a document a row: 0 is padding on the right, 1 the
    unknown token, 2 the end; other numbers are the words. Padding costs nothing and
    changes nothing. A document is predicted as it stands, with its end token where it
    has one; :meth:`sample` and :meth:`inverse_transform` stop at the first 2.

    Minimised, in nats per document:
    ``-E_q sum_t log p(x_t | x_<t, z) + beta KL(q(z|x) || N(0, I))``.
    Batches hold documents of like length. With ``c_0 = W z + b`` the decoder starts
    from cell c_0 and hidden state tanh(c_0), as in He et al.

    References
    ----------
    Bowman, Vilnis, Vinyals, Dai, Jozefowicz, Bengio, "Generating Sentences from a
    Continuous Space", CoNLL 2016, arXiv:1511.06349.

    He, Spokoyny, Neubig, Berg-Kirkpatrick, "Lagging Inference Networks and Posterior
    Collapse in Variational Autoencoders", ICLR 2019, arXiv:1901.05534.

    Examples
    --------
    >>> import numpy as np
    >>> from skvae import SequenceVAE
    >>> rng = np.random.default_rng(0)
    >>> share = rng.random((200, 1))  # of fours among the threes of a document
    >>> X = 3 + (rng.random((200, 20)) < share)
    >>> vae = SequenceVAE(1, beta=0.2, width=16, embedding_size=8, max_iter=12,
    ...                   learning_rate=0.01, random_state=0).fit(X)
    >>> Z = vae.transform(X)
    >>> bool(abs(np.corrcoef(Z[:, 0], share[:, 0])[0, 1]) > 0.8)
    True
    >>> vae.inverse_transform(Z).shape
    (200, 20)
    """
