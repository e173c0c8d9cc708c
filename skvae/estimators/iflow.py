"""iFlow: the iVAE without noise, an invertible map with an exact likelihood.

x = f(z) with f invertible and p(z|u) = prod_i N(z_i; m_i(u), s_i(u)^2), trained on
log p(x|u) = log p(g(x)|u) + log|det Jg(x)|, g = f^{-1} (Li, Hooi, Lee 2020, with the
prior of Khemakhem et al. 2020 and another flow).
"""

from __future__ import annotations

import numpy as np

from skvae._spec import resolve
from skvae._validation import HasMethods, StrOptions
from skvae.estimators._base import BaseVAE
from skvae.estimators._conditional import ConditionalVAE
from skvae.estimators._fitting import Specifications
from skvae.estimators._flow import Noiseless, PointPosterior
from skvae.inference import Amortized
from skvae.networks import FLOWS
from skvae.objectives import ELBO
from skvae.priors import PRIORS


class iFlow(ConditionalVAE):
    """Identifiable normalizing flow: an invertible map with a prior p(z given u).

    As many latents as features (there is no `n_components`), no noise and no bound:
    the likelihood is exact. With enough different values of an auxiliary variable u,
    the latents are the sources of the data up to order, sign and scale.

    Parameters
    ----------
    prior : "conditional_gaussian" or specification, default="conditional_gaussian"
        The law p(z|u): its mean and variance depend on u;
        ``ConditionalGaussian(mean="zero")`` fixes the mean.
    flow : "spline" or specification, default="spline"
        The invertible map, for example ``SplineFlow(depth=6, n_bins=16)``.
    depth : int, default=4
        Layers of a flow given by name.
    u_type : {"auto", "discrete", "continuous"}, default="auto"
        How u is read. "auto" takes one column of integers, booleans or strings as
        discrete and everything else as continuous.
    max_iter : int, default=100
        Number of epochs.
    batch_size : int or "auto", default="auto"
        Rows per step. "auto" takes a 32nd of the rows, between 16 and 128.
    learning_rate : float, default=0.02
        Adam's step size.
    schedule : {"cosine", "constant"}, default="cosine"
        "cosine" keeps the rate for half of training and then lets it fall to a
        hundredth. With early stopping it is constant.
    early_stopping : bool, default=False
        Whether to hold out rows and stop when their log-likelihood stands still. The
        best weights are kept.
    validation_fraction : float, default=0.1
        Fraction of rows held out by early stopping.
    n_iter_no_change : int, default=10
        Epochs without improvement before early stopping stops.
    tol : float, default=0.0001
        Improvement of the held-out log-likelihood, in nats, that counts.
    n_init : int, default=1
        Number of restarts, trained together in one batch. The one with the best
        log-likelihood is kept. Four or more are advised to recover sources: some
        restarts end in worse optima, and the likelihood tells which.
    warm_start : bool, default=False
        Whether :meth:`fit` starts from the weights of the previous fit.
    device : str, default="auto"
        Where to compute: "cpu", "cuda", "cuda:1", ...; "auto" takes CUDA where there
        is a device. Fitted networks rest on the CPU.
    random_state : int, RandomState instance or None, default=None
        Decides initial weights and shuffling. Pass an int for reproducible results
        across calls. See :term:`Glossary <random_state>`.
    verbose : int, default=0
        1 prints a line per epoch, 2 adds the terms of the log-likelihood.

    Attributes
    ----------
    u_categories_ : ndarray of shape (n_categories,)
        Values of a discrete u seen during fit.
    identifiability_ : dict
        Which assumptions of the identifiability theorem hold; see
        :class:`IdentifiableVAE`.
    inverse_lipschitz_ : float
        Lower bound on ``|f(z) - f(z')| / |z - z'|`` computed from the weights, f being
        :meth:`inverse_transform`.
    kl_per_component_ : ndarray of shape (n_components,)
        What u says about each component: mean KL of p(z_i|u) from the Gaussian with
        the moments of p(z_i), in nats, largest first.
    explained_kl_ratio_ : ndarray of shape (n_components,)
        Each component's share of the sum.
    active_components_ : ndarray of bool of shape (n_components,)
        All true: an invertible map leaves nothing out.
    consistency_ : ndarray of shape (n_components,)
        With ``n_init > 1``, mean absolute correlation of each component with its match
        in the other restarts.
    loss_curve_ : list of float
        Mean of -log p(x|u) over rows in each epoch, in nats.
    history_ : dict of list
        Columns "epoch", "loss", "log_likelihood" (log|det Jg|), "kl" (-log p(z|u)),
        "bound" (log p(x|u)), "kl_weight" (1), "gradient_norm", "learning_rate",
        "seconds" and, with early stopping, "validation_bound".
    best_bound_ : float
        Mean of log p(x|u) on training rows, or on held-out rows with early stopping.
    validation_scores_ : list of float
        With early stopping, the held-out log-likelihood of each epoch.
    n_iter_ : int
        Number of epochs run.
    n_rollbacks_ : int
        How often training turned non-finite and went on from earlier weights.
    module_ : LatentVariableModel
        The trained torch module, on the CPU.
    n_features_in_ : int
        Number of features seen during fit.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of features seen during fit, when X has string column names.

    See Also
    --------
    iVAE : Fewer latents than features, and noise.
    TCL : Learns features that tell the values of u apart.

    Notes
    -----
    Minimised, in nats per row: ``-log p(g(x)|u) - log|det Jg(x)|``. Where `u` is
    None, `y` stands in for it. Without u, :meth:`score_samples` uses the mixture of
    p(z|u) over the training u; :meth:`transform` never needs u. :meth:`posterior`
    has standard deviation zero.

    Columns that are functions of each other have no density: the likelihood then
    grows without limit. Remove them, or reduce X before: ``make_pipeline(PCA(5),
    iFlow())``. Where X has more columns than there are sources, or noise,
    :class:`IdentifiableVAE` learns the noise beside the flow.

    The published flow is made of rational-quadratic spline couplings; this one
    alternates dense matrices with one spline per coordinate. Its certificate
    `inverse_lipschitz_` multiplies the bounds of the layers and is loose.

    For 40 segments of 1000 rows with 5 features, ``max_iter=16, batch_size=256,
    learning_rate=0.04, n_init=6`` take about half a minute on one core.

    References
    ----------
    Li, Hooi, Lee, "Identifying through Flows for Recovering Latent Representations",
    ICLR 2020, arXiv:1909.12555.

    Khemakhem, Kingma, Monti, Hyvarinen, "Variational Autoencoders and Nonlinear ICA:
    A Unifying Framework", AISTATS 2020, arXiv:1907.04809.

    Examples
    --------
    >>> import numpy as np
    >>> from skvae import iFlow
    >>> from skvae.datasets import make_nonlinear_ica
    >>> X, u = make_nonlinear_ica(800, n_segments=8, n_features=2, random_state=0)
    >>> flow = iFlow(max_iter=3, random_state=0).fit(X, u=u)
    >>> bool(np.allclose(flow.inverse_transform(flow.transform(X)), X))
    True
    """

    # Choices that other estimators have and a flow has not.
    beta = 1.0
    likelihood = "gaussian"
    n_draws = 1
    width = 64

    _parameter_constraints: dict = {
        **{
            name: BaseVAE._parameter_constraints[name]
            for name in (
                "depth",
                "max_iter",
                "batch_size",
                "learning_rate",
                "schedule",
                "early_stopping",
                "validation_fraction",
                "n_iter_no_change",
                "tol",
                "n_init",
                "warm_start",
                "device",
                "random_state",
                "verbose",
            )
        },
        "prior": [
            StrOptions({"conditional_gaussian"}),
            HasMethods(["build", "get_params"]),
        ],
        "flow": [StrOptions(set(FLOWS)), HasMethods(["build", "get_params"])],
        "u_type": [StrOptions({"auto", "discrete", "continuous"})],
    }

    def __init__(
        self,
        *,
        prior="conditional_gaussian",
        flow="spline",
        depth=4,
        u_type="auto",
        max_iter=100,
        batch_size="auto",
        learning_rate=0.02,
        schedule="cosine",
        early_stopping=False,
        validation_fraction=0.1,
        n_iter_no_change=10,
        tol=1e-4,
        n_init=1,
        warm_start=False,
        device="auto",
        random_state=None,
        verbose=0,
    ):
        self.prior = prior
        self.flow = flow
        self.depth = depth
        self.u_type = u_type
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.schedule = schedule
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.n_init = n_init
        self.warm_start = warm_start
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def _n_latents(self, n_features):
        return n_features

    def _parts(self, conditional):
        prior = resolve(self.prior, PRIORS)
        if not prior.needs_u:
            raise ValueError(
                f"prior={self.prior!r} does not depend on u, and iFlow is identified "
                "by a prior that does. Use ConditionalGaussian()."
            )
        return Specifications(
            encoder=resolve(self.flow, FLOWS, depth=self.depth),
            decoder=None,
            prior=prior,
            likelihood=Noiseless(),
            posterior=PointPosterior(),
            inference=Amortized(),
            objective=ELBO(),
        )

    def _fitted_state(self, run, best):
        state = super()._fitted_state(run, best)
        state["active_components_"] = np.ones(run.model.n_latents, dtype=bool)
        return state
