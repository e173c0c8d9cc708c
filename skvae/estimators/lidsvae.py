"""LIDSVAE: a sequence decoder whose every next-word law tells codes apart.

h_t = LSTM(x_<t) does not see z; x_t | x_<t, z has log-probabilities that are an
injective function of z (Wang, Blei, Cunningham 2021, for text).
"""

from __future__ import annotations

from numbers import Real

from skvae._validation import Interval, StrOptions
from skvae.estimators._sequences import BaseSequenceVAE, documented
from skvae.networks._sequence_outputs import INJECTIVE_OUTPUTS


@documented
class LIDSVAE(BaseSequenceVAE):
    """Latent-identifiable sequential variational autoencoder.

    z enters in one place, between the LSTM's state and the softmax, by a map that is
    injective in z: at every place of a document, two codes give two laws of the next
    token, ``|log p - log p'| >= inverse_lipschitz_ |z - z'|`` in the Euclidean norm
    over the vocabulary.

    Parameters
    ----------
    n_components : int, default=32
        Number of latent variables, at most `n_tokens` - 2.
    inverse_lipschitz : float, default=0.3
        Lower bound enforced on the change of a token's log-probabilities, in nats,
        per unit of z.
    decoder : {"anchored", "brenier"}, default="anchored"
        "brenier" are the two published Brenier maps of [h_t; z], which need
        ``width + n_components <= n_tokens - 2``; "anchored" is an ordinary network of
        [h_t; z], strongly monotone on as many directions as there are latents, at
        about the cost of a softmax layer whatever the vocabulary.
    [shared parameters]

    Attributes
    ----------
    [shared attributes]

    See Also
    --------
    SequenceVAE : The decoder without constraints; its notes say what X is.
    LIDVAE : The method for features that are no sequence.

    Notes
    -----
    Minimised, in nats per document:
    ``-E_q sum_t log p(x_t | x_<t, z) + beta KL(q(z|x) || N(0, I))``.

    Logits are defined up to a constant, which a map that is injective in the logits
    could use to hide z. Both maps here leave it no way: their images have no
    component along the ones. "anchored" has its directions among the frequent tokens;
    the bound counts rare ones as much, though a document hardly ever shows them.

    References
    ----------
    Wang, Blei, Cunningham, "Posterior Collapse and Latent Variable
    Non-identifiability", NeurIPS 2021, arXiv:2301.00537.

    Examples
    --------
    >>> import numpy as np
    >>> from skvae import LIDSVAE
    >>> rng = np.random.default_rng(0)
    >>> share = rng.random((200, 1))  # of fours among the threes of a document
    >>> X = 3 + (rng.random((200, 20)) < share)
    >>> vae = LIDSVAE(1, width=16, embedding_size=8, max_iter=10,
    ...               learning_rate=0.01, random_state=0).fit(X)
    >>> bool(vae.inverse_lipschitz_ >= 0.3)
    True
    >>> Z = vae.transform(X)
    >>> bool(abs(np.corrcoef(Z[:, 0], share[:, 0])[0, 1]) > 0.8)
    True
    """

    _parameter_constraints: dict = {
        **BaseSequenceVAE._parameter_constraints,
        "inverse_lipschitz": [Interval(Real, 0, None, closed="neither")],
        "decoder": [StrOptions(set(INJECTIVE_OUTPUTS))],
    }

    def __init__(
        self,
        n_components=32,
        *,
        inverse_lipschitz=0.3,
        decoder="anchored",
        beta=1.0,
        width=256,
        embedding_size=128,
        dropout=0.0,
        word_dropout=0.0,
        n_tokens=None,
        objective="elbo",
        inference="amortized",
        max_iter=100,
        batch_size="auto",
        learning_rate=1e-3,
        schedule="cosine",
        early_stopping=False,
        validation_fraction=0.1,
        n_iter_no_change=10,
        tol=1e-4,
        n_init=1,
        warm_start=False,
        n_draws=100,
        device="auto",
        random_state=None,
        verbose=0,
    ):
        super().__init__(
            n_components,
            beta=beta,
            width=width,
            embedding_size=embedding_size,
            dropout=dropout,
            word_dropout=word_dropout,
            n_tokens=n_tokens,
            objective=objective,
            inference=inference,
            max_iter=max_iter,
            batch_size=batch_size,
            learning_rate=learning_rate,
            schedule=schedule,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            n_iter_no_change=n_iter_no_change,
            tol=tol,
            n_init=n_init,
            warm_start=warm_start,
            n_draws=n_draws,
            device=device,
            random_state=random_state,
            verbose=verbose,
        )
        self.inverse_lipschitz = inverse_lipschitz
        self.decoder = decoder

    def _decoder(self, **options):
        return super()._decoder(
            conditioned=False,
            output=self.decoder,
            inverse_lipschitz=self.inverse_lipschitz,
            **options,
        )
