"""SkipSequenceVAE: the decoder's softmax reads z again (Dieng et al. 2019)."""

from __future__ import annotations

from skvae.estimators._sequences import BaseSequenceVAE, documented


@documented
class SkipSequenceVAE(BaseSequenceVAE):
    """Skip-VAE of token sequences: z is read again before the output softmax.

    The decoder is that of `SequenceVAE`, and z also stands beside its state where the
    next token is chosen, so that no path from z to x leads through the LSTM alone.
    With ``inference="semi_amortized"`` it is the published skip-sa-VAE.

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
    SequenceVAE : The same model without the skip; its notes say what X is.
    SkipVAE : The method for features that are no sequence.

    Notes
    -----
    ``p(x_t | x_<t, z) = softmax(W h_t + V z + b)``, h_t the LSTM's state. Minimised,
    in nats per document:
    ``-E_q sum_t log p(x_t | x_<t, z) + beta KL(q(z|x) || N(0, I))``.
    The LSTM has one layer; the published skips between layers have no place in it.

    References
    ----------
    Dieng, Kim, Rush, Blei, "Avoiding Latent Variable Collapse with Generative Skip
    Models", AISTATS 2019, arXiv:1807.04863.

    Examples
    --------
    >>> import numpy as np
    >>> from skvae import SkipSequenceVAE
    >>> rng = np.random.default_rng(0)
    >>> share = rng.random((200, 1))  # of fours among the threes of a document
    >>> X = 3 + (rng.random((200, 20)) < share)
    >>> vae = SkipSequenceVAE(1, beta=0.5, width=16, embedding_size=8, max_iter=10,
    ...                       learning_rate=0.01, random_state=0).fit(X)
    >>> vae.sample(3, random_state=0).shape
    (3, 20)
    >>> bool(vae.perplexity(X) < 1.9)
    True
    """

    def _decoder(self, **options):
        return super()._decoder(output="skip", **options)
