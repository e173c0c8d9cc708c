"""IdentifiableVAE: an injective decoder and an informative prior at once.

p(z) is p(z|u) where u or y is given (Khemakhem et al. 2020) and a learned Gaussian
mixture where not (Kivva et al. 2022); p(x|z) = EF(x | f(z)) with f injective (Wang,
Blei, Cunningham 2021). Every part is a parameter, so that any combination can be
composed and searched.
"""

from __future__ import annotations

from numbers import Real

from skvae._spec import resolve
from skvae._validation import HasMethods, Interval, StrOptions
from skvae.estimators._base import BaseVAE
from skvae.estimators._conditional import ConditionalVAE
from skvae.estimators._docs import documented
from skvae.likelihoods import LIKELIHOODS
from skvae.networks import DECODERS, ENCODERS, InjectiveFlow
from skvae.posteriors import POSTERIORS, EncoderPosterior
from skvae.priors import PRIORS, ConditionalGaussian, GaussianMixture

# Columns of X up to which "auto" takes the flow, whose matrices are as wide as X.
FLOW_FEATURES = 16


def _is_inverse(encoder):
    return getattr(encoder, "of_decoder", False)


@documented(
    encoder='{"auto", "mlp", "inverse", ...} or specification, default="auto"',
    decoder='{"auto", "anchored", "flow", ...} or specification, default="auto"',
    learning_rate='float or "auto", default="auto"',
)
class IdentifiableVAE(ConditionalVAE):
    """Injective decoder and informative prior; says which theorem's assumptions hold.

    Parameters
    ----------
    n_components : int, default=2
        Number of latent variables, at most the number of features.
    prior : {"auto", "conditional_gaussian", "gaussian_mixture", "standard_normal"} \
or specification, default="auto"
        "auto" is p(z|u) where u or y is given to fit, and a Gaussian mixture of ten
        components where not.
    inverse_lipschitz : float, default=0.3
        Lower bound enforced on the slope of the decoders "anchored" and "brenier", in
        units of the root mean variance of X for a Gaussian likelihood, in logits or
        log-rates otherwise.
    posterior_type : {"product", "joint"}, default="product"
        Posterior under a prior that depends on u; see :class:`iVAE`.
    covariance : {"auto", "diagonal", "full"}, default="auto"
        Covariance of the posterior. A diagonal one draws the decoder towards
        orthogonal columns in its Jacobian and so away from the true latents, however
        small the noise. With ``encoder="mlp"`` and few categories of u, codes without u
        are worth less with a full one. "auto" is full with the decoder's inverse as
        encoder, and diagonal otherwise.
    u_type : {"auto", "discrete", "continuous"}, default="auto"
        How u is read. "auto" takes one column of integers, booleans or strings as
        discrete and everything else as continuous.
    [shared parameters]

    Attributes
    ----------
    u_categories_ : ndarray of shape (n_categories,)
        Values of a discrete u seen during fit.
    identifiability_ : dict
        "theorem", "up_to", "holds" and "assumptions", a dict of (bool, explanation);
        with p(z|u) also "l_matrix_rank", "l_matrix_full_rank" and
        "l_matrix_condition", with a mixture "n_mixtures_used", "means_rank" and
        "means_condition". They are judged on the learned parameters.
    [shared attributes]

    See Also
    --------
    iVAE : The prior p(z given u) with an unconstrained decoder.
    LIDVAE : The injective decoder with prior N(0, I).

    Notes
    -----
    Minimised, in nats per row:
    ``-E_q log p(x|z) + beta KL(q(z|x,u) || p(z|u))``. With a mixture prior the KL
    term is a one-draw estimate.

    What is left at "auto" depends on the data. With u, a Gaussian likelihood and up to
    16 features, the decoder is a flow of ``2 * depth`` layers and the encoder its
    inverse (:class:`~skvae.networks.InjectiveFlow`), learned at a rate of 0.02: it
    recovers sources best, in steps of a thousand small operations however few the rows.
    Otherwise the decoder is "anchored" and the encoder "mlp", learned at 0.001. Where
    one of the two networks is given, the other is what goes with it.

    References
    ----------
    Khemakhem, Kingma, Monti, Hyvarinen, "Variational Autoencoders and Nonlinear ICA:
    A Unifying Framework", AISTATS 2020, arXiv:1907.04809.

    Kivva, Rajendran, Ravikumar, Aragam, "Identifiability of Deep Generative Models
    without Auxiliary Information", NeurIPS 2022, arXiv:2206.10044.

    Wang, Blei, Cunningham, "Posterior Collapse and Latent Variable
    Non-identifiability", NeurIPS 2021, arXiv:2301.00537.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import IdentifiableVAE
    >>> X, y = load_iris(return_X_y=True)
    >>> vae = IdentifiableVAE(n_components=1, width=32, max_iter=10, random_state=0)
    >>> report = vae.fit(X, u=y).identifiability_
    >>> report["l_matrix_full_rank"]
    2
    >>> vae.fit(X).identifiability_["theorem"]
    'Kivva et al. 2022, affine identifiability'
    """

    _requires_u = False

    _parameter_constraints: dict = {
        **BaseVAE._parameter_constraints,
        "inverse_lipschitz": [Interval(Real, 0, None, closed="neither")],
        "prior": [
            StrOptions({"auto", *PRIORS}),
            HasMethods(["build", "get_params"]),
        ],
        "posterior_type": [StrOptions({"product", "joint"})],
        "encoder": [StrOptions({"auto"}), *BaseVAE._parameter_constraints["encoder"]],
        "decoder": [StrOptions({"auto"}), *BaseVAE._parameter_constraints["decoder"]],
        "covariance": [StrOptions({"auto", "full", "diagonal"})],
        "learning_rate": [
            StrOptions({"auto"}),
            *BaseVAE._parameter_constraints["learning_rate"],
        ],
        "u_type": [StrOptions({"auto", "discrete", "continuous"})],
    }

    def __init__(
        self,
        n_components=2,
        *,
        prior="auto",
        inverse_lipschitz=0.3,
        posterior_type="product",
        covariance="auto",
        u_type="auto",
        beta=1.0,
        width=256,
        depth=2,
        encoder="auto",
        decoder="auto",
        likelihood="gaussian",
        objective="elbo",
        inference="amortized",
        max_iter=100,
        batch_size="auto",
        learning_rate="auto",
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
            depth=depth,
            encoder=encoder,
            decoder=decoder,
            likelihood=likelihood,
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
        self.prior = prior
        self.inverse_lipschitz = inverse_lipschitz
        self.posterior_type = posterior_type
        self.covariance = covariance
        self.u_type = u_type

    def _network(self, part, table=DECODERS, **options):
        bound = {"inverse_lipschitz": self.inverse_lipschitz}
        return super()._network(part, table, **bound, **options)

    def _networks(self, conditional):
        n_features = self.n_features_in_
        posterior = resolve(self.posterior_type, POSTERIORS)
        invertible = (
            resolve(self.likelihood, LIKELIHOODS).domain == "real"
            and posterior.n_inputs(n_features, 1) == n_features
        )
        if self.decoder != "auto":
            given = self._network(self.decoder)
            invertible &= getattr(given, "has_inverse", False)
        elif self.encoder != "auto":
            invertible = _is_inverse(self._network(self.encoder, ENCODERS))
        else:
            invertible &= conditional and n_features <= FLOW_FEATURES
        flow = "inverse", InjectiveFlow(depth=2 * self.depth)
        encoder, decoder = flow if invertible else ("mlp", "anchored")
        return (
            encoder if self.encoder == "auto" else self.encoder,
            decoder if self.decoder == "auto" else self.decoder,
        )

    def _step_size(self):
        if self.learning_rate != "auto":
            return self.learning_rate
        parts = self._parts(conditional=self._auxiliary_shape().n_columns > 0)
        return 0.02 if _is_inverse(parts.encoder) else 0.001

    def _parts(self, conditional):
        automatic = ConditionalGaussian() if conditional else GaussianMixture()
        prior = resolve(self.prior, {"auto": lambda: automatic, **PRIORS})
        if prior.needs_u and not conditional:
            raise ValueError(
                f"prior={self.prior!r} depends on u, but neither u nor y was passed to "
                "fit. Pass u, or use prior='gaussian_mixture'."
            )
        parts = super()._parts(conditional)
        covariance = self.covariance
        if covariance == "auto":
            covariance = "full" if _is_inverse(parts.encoder) else "diagonal"
        posterior = (
            resolve(self.posterior_type, POSTERIORS, covariance=covariance)
            if prior.needs_u
            else EncoderPosterior(covariance)
        )
        return parts._replace(prior=prior, posterior=posterior)
