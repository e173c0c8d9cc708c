"""Documentation of the parameters and attributes that all estimators share."""

from __future__ import annotations

# Parameters of training, with the sentences on restarts and on what chance decides left
# open.
TRAINING = """\
    inference : {{"amortized", "semi_amortized", "lagging"}} or specification, \
default="amortized"
        How the posterior is found: by the encoder; by the encoder and a few steps of
        refinement for each row; by an encoder trained harder than the decoder.
    max_iter : int, default=100
        Number of epochs.
    batch_size : int or "auto", default="auto"
        Rows per step. "auto" takes a 32nd of the rows, between 16 and 128.
    learning_rate : {learning_rate}
        Adam's step size.
    schedule : {{"cosine", "constant"}}, default="cosine"
        "cosine" keeps the rate for half of training and then lets it fall to a
        hundredth. With early stopping it is constant.
    early_stopping : bool, default=False
        Whether to hold out rows and stop when their bound at beta 1 stands still;
        armed after the KL warm-up. The best weights are kept.
    validation_fraction : float, default=0.1
        Fraction of rows held out by early stopping.
    n_iter_no_change : int, default=10
        Epochs without improvement before early stopping stops.
    tol : float, default=0.0001
        Improvement of the held-out bound, in nats, that counts.
    n_init : int, default=1
        {restarts}
    warm_start : bool, default=False
        Whether :meth:`fit` starts from the weights of the previous fit.
    n_draws : int, default=100
        Importance samples per row in :meth:`score_samples`.
    device : str, default="auto"
        Where to compute: "cpu", "cuda", "cuda:1", ...; "auto" takes CUDA where there
        is a device. Fitted networks rest on the CPU.
    random_state : int, RandomState instance or None, default=None
        {chance} See :term:`Glossary <random_state>`.
    verbose : int, default=0
        1 prints a line per epoch, 2 adds the terms of the objective."""

PARAMETERS = """\
beta : float, default=1.0
        Weight of the KL term in the objective; never part of :meth:`score`.
    width : int, default={width}
        Units of each hidden layer of networks given by name.
    depth : int, default=2
        Hidden layers of networks given by name.
    encoder : {encoder}
        Network from x to the posterior, for example ``MLP(activation="tanh")``.
        "inverse" is the inverse of ``decoder="flow"``. "conv" and "resnet" read rows
        as square images; ``ConvEncoder(image_shape=(height, width))`` as others.
    decoder : {decoder}
        Network from z to the likelihood's parameters.
    likelihood : {{"gaussian", "bernoulli", "poisson", "negative_binomial"}} or \
specification, default="gaussian"
        What X is: real numbers; binary values or grey levels in [0, 1]; counts.
        "gaussian" learns one noise variance; ``Gaussian(noise="per_feature")`` one
        per column, ``Gaussian(noise=0.1)`` fixes the standard deviation.
    objective : {{"elbo", "total_correlation", "iwae", "covariate_informed"}} \
or specification, default="elbo"
        Training objective, for example ``ELBO(warm_up=0.3, free_bits=0.05)``.
"""

ENCODER = '{"mlp", "inverse", "conv", "resnet"} or specification, default="mlp"'

RATE = "float, default=0.001"

RESTARTS = """\
Number of restarts, trained together in one batch. The one with the best
        bound at beta 1 is kept."""
CHANCE = """\
Decides initial weights, shuffling and noise. Pass an int for reproducible
        results across calls."""

ATTRIBUTES = """\
kl_per_component_ : ndarray of shape (n_components,)
        Mean KL of each component over training rows, in nats, largest first.
    explained_kl_ratio_ : ndarray of shape (n_components,)
        Each component's share of the summed KL.
    active_components_ : ndarray of bool of shape (n_components,)
        Whether the variance of the posterior mean over training rows exceeds 0.01.
    noise_variance_ : float or ndarray of shape (n_features,)
        Noise variance of a Gaussian likelihood, in squared units of X.
    inverse_lipschitz_ : float
        For injective decoders, a lower bound on ``|f(z) - f(z')| / |z - z'|`` computed
        from the weights, f being the likelihood's parameters (the mean in units of X,
        or logits).
    consistency_ : ndarray of shape (n_components,)
        With ``n_init > 1``, mean absolute correlation of each component with its match
        in the other restarts.
    loss_curve_ : list of float
        Training objective of each epoch, in nats: summed over features and latents,
        averaged over rows.
    history_ : dict of list
        Columns "epoch", "loss", "log_likelihood", "kl", "bound" (at beta 1),
        "kl_weight", "gradient_norm", "learning_rate", "seconds" and, with early
        stopping, "validation_bound".
    best_bound_ : float
        Bound at beta 1 on training rows, or on held-out rows with early stopping.
    validation_scores_ : list of float
        With early stopping, the held-out bound of each epoch.
    n_iter_ : int
        Number of epochs run.
    n_rollbacks_ : int
        How often training turned non-finite and went on from earlier weights.
    module_ : LatentVariableModel
        The trained torch module, on the CPU.
    n_features_in_ : int
        Number of features seen during fit.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of features seen during fit, when X has string column names."""


def documented(decoder, *, encoder=ENCODER, width=256, learning_rate=RATE):
    """Class decorator that fills the shared sections into the docstring.

    Parameters
    ----------
    decoder : str
        Type and default of the class's `decoder` parameter.
    encoder : str
        Those of its `encoder`.
    width : int
        Default of its `width`.
    learning_rate : str
        Type and default of its `learning_rate`.
    """

    def fill(cls):
        shared = (PARAMETERS + TRAINING).format(
            decoder=decoder,
            encoder=encoder,
            width=width,
            learning_rate=learning_rate,
            restarts=RESTARTS,
            chance=CHANCE,
        )
        cls.__doc__ = cls.__doc__.replace("[shared parameters]", shared).replace(
            "[shared attributes]", ATTRIBUTES
        )
        return cls

    return fill
