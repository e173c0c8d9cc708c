"""TCL: features that tell segments apart are the squares of the sources.

A maxout network with |affine| outputs and a multinomial logistic regression on top are
trained to predict the segment u from x (Hyvarinen, Morioka 2016); where variances of
independent sources change between segments, the features are then a linear map of the
squared sources, and linear ICA finds it.
"""

from __future__ import annotations

import copy
from numbers import Integral, Real

import numpy as np
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.callback import CallbackSupportMixin, with_callbacks

from skvae import __version__
from skvae._random import weight_generators
from skvae._training import SCHEDULES, Settings, train
from skvae._validation import (
    Interval,
    StrOptions,
    check_constant_columns,
    check_is_fitted,
    check_random_state,
    check_X,
    warn,
)
from skvae.estimators._auxiliary import AuxiliaryEncoder, check_length
from skvae.estimators._base import BaseVAE
from skvae.estimators._contrastive import (
    READOUTS,
    CrossEntropy,
    HeadFirst,
    SegmentClassifier,
    evaluate,
    mean_log_probability,
)
from skvae.estimators._fitting import (
    draw_seeds,
    history_columns,
    lifted,
    resolve_device,
    restart_consistency,
    spread,
    to_data,
    unchanged_on_error,
)
from skvae.estimators._training_steps import TrainingSteps
from skvae.estimators._versioned import Versioned

# Columns of the engine's history that mean something here.
COLUMNS = ("epoch", "loss", "gradient_norm", "learning_rate", "seconds")
# Rows on which the linear unmixing is found and restarts are compared.
READOUT_ROWS = 100_000
CONSISTENCY_ROWS = 10_000


class TCL(
    Versioned,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    CallbackSupportMixin,
    BaseEstimator,
):
    """Time-contrastive learning: nonlinear ICA by telling segments apart.

    Learns features from which a logistic regression predicts the segment. They
    estimate the **squares** of the sources up to a linear map: compare them with
    squared sources, before and after the read-out.

    Parameters
    ----------
    n_components : int, default=2
        Number of features. The theory asks for as many as there are sources, and for
        as many sources as columns of X.
    readout : {"ica", "none"}, default="ica"
        What :meth:`transform` returns: the features after linear ICA, or as they are.
    width : int, default=None
        Units of each hidden layer, `8 * n_components` if None. The published program
        has `2 * n_components`, which recovers less.
    depth : int, default=2
        Hidden maxout layers.
    n_pieces : int, default=2
        Affine functions of which a maxout unit takes the largest.
    weight_decay : float, default=1e-4
        Factor of half the squared weights in the objective.
    head_start : float, default=0.1
        Fraction of training in which the logistic regression alone is trained.
    averaging : float, default=0.999
        Decay, per step, of the exponential moving average of all parameters that is
        kept in the end.
    max_iter : int, default=100
        Number of epochs.
    batch_size : int or "auto", default="auto"
        Rows per step. "auto" takes a 32nd of the rows, between 16 and 256.
    learning_rate : float, default=0.02
        Adam's step size.
    schedule : {"cosine", "constant"}, default="cosine"
        "cosine" keeps the rate for half of training and then lets it fall to a
        hundredth.
    n_init : int, default=1
        Number of restarts, trained together in one batch. The one with the smallest
        cross-entropy is kept.
    device : str, default="auto"
        Where to compute: "cpu", "cuda", "cuda:1", ...; "auto" takes CUDA where there
        is a device. Fitted networks rest on the CPU.
    random_state : int, RandomState instance or None, default=None
        Decides initial weights, shuffling and the start of ICA. Pass an int for
        reproducible results across calls. See :term:`Glossary <random_state>`.
    verbose : int, default=0
        1 prints a line per epoch, 2 adds the log-probability of the segment.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Segments seen during fit.
    consistency_ : ndarray of shape (n_components,)
        With ``n_init > 1``, mean absolute correlation of each feature, before the
        read-out, with its match in the other restarts.
    best_score_ : float
        Mean log-probability of the segment on training rows, in nats.
    loss_curve_ : list of float
        Cross-entropy and penalty of each epoch, in nats per row.
    history_ : dict of list
        Columns "epoch", "loss", "cross_entropy", "gradient_norm", "learning_rate" and
        "seconds".
    n_iter_ : int
        Number of epochs run.
    n_rollbacks_ : int
        How often training turned non-finite and went on from earlier weights.
    module_ : SegmentClassifier
        The trained torch module, on the CPU.
    n_features_in_ : int
        Number of features seen during fit.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of features seen during fit, when X has string column names.

    See Also
    --------
    iVAE : Recovers the sources themselves, and where their means change too.
    iFlow : The same with an exact likelihood.

    Notes
    -----
    Minimised, in nats per row: ``-log p(u|x) + weight_decay / 2 |W|^2``. X is
    whitened first, with all principal components. Where `u` is None, `y` stands in
    for it; it is always read as labels. Features are even functions of the sources:
    signs are lost, and sources whose mean changes between segments are outside of
    the method's theory. Components are turned to be skewed to the right, as squares
    are.

    The published program uses momentum, 70,000 steps and a moving average with decay
    0.9999; here it is Adam, which needs fewer steps.

    References
    ----------
    Hyvarinen, Morioka, "Unsupervised Feature Extraction by Time-Contrastive Learning
    and Nonlinear ICA", NIPS 2016, arXiv:1605.06336.

    Examples
    --------
    >>> from skvae import TCL
    >>> from skvae.datasets import make_nonlinear_ica
    >>> X, u = make_nonlinear_ica(800, n_segments=4, n_features=2, random_state=0)
    >>> tcl = TCL(n_components=2, max_iter=10, random_state=0).fit(X, u)
    >>> tcl.transform(X).shape
    (800, 2)
    >>> bool(tcl.score(X, u) > -1.38)  # log(1/4) is chance
    True
    """

    __metadata_request__fit = {"u": True}
    __metadata_request__score = {"u": True}

    _doc_link_module = "skvae"

    _parameter_constraints: dict = {
        **{
            name: BaseVAE._parameter_constraints[name]
            for name in (
                "n_components",
                "depth",
                "max_iter",
                "batch_size",
                "learning_rate",
                "schedule",
                "n_init",
                "device",
                "random_state",
                "verbose",
            )
        },
        "readout": [StrOptions(set(READOUTS))],
        "width": [None, Interval(Integral, 1, None, closed="left")],
        "n_pieces": [Interval(Integral, 2, None, closed="left")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "head_start": [Interval(Real, 0, 1, closed="left")],
        "averaging": [Interval(Real, 0, 1, closed="left")],
    }

    def __init__(
        self,
        n_components=2,
        *,
        readout="ica",
        width=None,
        depth=2,
        n_pieces=2,
        weight_decay=1e-4,
        head_start=0.1,
        averaging=0.999,
        max_iter=100,
        batch_size="auto",
        learning_rate=0.02,
        schedule="cosine",
        n_init=1,
        device="auto",
        random_state=None,
        verbose=0,
    ):
        self.n_components = n_components
        self.readout = readout
        self.width = width
        self.depth = depth
        self.n_pieces = n_pieces
        self.weight_decay = weight_decay
        self.head_start = head_start
        self.averaging = averaging
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.schedule = schedule
        self.n_init = n_init
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    # --------------------------------------------------------------- training

    _epochs = TrainingSteps._epochs
    _print = TrainingSteps._print
    _warn_rollbacks = TrainingSteps._warn_rollbacks

    def _labels(self, X, y, u, encoder=None):
        """Encoder of the segments, and one-hot segments ``(n, C)``."""
        given = y if u is None else u
        if given is None:
            raise ValueError(
                f"{type(self).__name__} requires y to be passed, but the target y is "
                "None. Pass the segment labels as y, or as u."
            )
        check_length(X, given)
        if encoder is None:
            encoder = AuxiliaryEncoder.learn(given, "discrete")
        return encoder, encoder.encode(given)

    @with_callbacks
    def fit(self, X, y=None, *, u=None):
        """Learn features that tell the segments apart.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training data.
        y : array-like of shape (n_samples,), default=None
            Segment of each row.
        u : array-like of shape (n_samples,), default=None
            Segment of each row, in place of `y`.

        Returns
        -------
        self : object
            The fitted estimator.
        """
        with unchanged_on_error(self):
            self._validate_params()
            X = check_X(self, X, reset=True)
            encoder, U = self._labels(X, y, u)
            constant = check_constant_columns(self, X)
            if constant:
                warn(constant)
            data = to_data(X, U, np.ones(len(X)), resolve_device(self.device))
            rng = check_random_state(self.random_state)
            readout_seed, seeds = draw_seeds(rng, self.n_init)
            model = SegmentClassifier(
                X.shape[1],
                self.n_components,
                U.shape[1],
                weight_generators(seeds),
                width=self.width or 8 * self.n_components,
                depth=self.depth,
                n_pieces=self.n_pieces,
            ).to(data.x.device)
            model.whiten(data.x)
            task = {"estimator": self, "X": X, "y": y, "metadata": {}}
            if u is not None:
                task["metadata"] = {"u": u}
            context = self._init_callback_context(max_subtasks=self.max_iter)
            context.call_on_fit_task_begin(**task)
            run = model, X, encoder, readout_seed
            procedure = HeadFirst(self.head_start, self.averaging)
            history = train(
                model,
                data,
                objective=CrossEntropy(self.weight_decay),
                inference=procedure,
                settings=self._settings(len(X)),
                seeds=seeds,
                begin_epoch=self._epochs(context, run, task),
            )
            procedure.finish()
            scores = mean_log_probability(model, data)
            best = int(np.argmax(scores))
            self.__dict__.pop("consistency_", None)
            vars(self).update(self._fitted_state(run, best))
            self.best_score_ = float(scores[best])
            self._keep_history(history, best)
            context.call_on_fit_task_end(**task, reconstruction_attributes={})
        return self

    def _settings(self, n_rows):
        batch_size = self.batch_size
        if batch_size == "auto":
            batch_size = int(np.clip(n_rows // 32, 16, 256))
        return Settings(
            max_epochs=self.max_iter,
            batch_size=min(batch_size, n_rows),
            learning_rate=self.learning_rate,
            schedule=SCHEDULES[self.schedule],
        )

    def _fitted_state(self, run, best):
        """All attributes that make `self` ready to transform."""
        model, X, encoder, readout_seed = run
        module = model.select(best).to("cpu").requires_grad_(False)
        state = {
            "module_": module,
            "classes_": encoder.categories,
            "_encoder": encoder,
            "_n_features_out": model.n_latents,
            "_skvae_version": __version__,
        }
        rows = X[spread(len(X), READOUT_ROWS)]
        double = copy.deepcopy(module).double()
        features = evaluate(double, "features", rows.astype(np.float64))[0]
        state["_readout"] = READOUTS[self.readout](features, readout_seed)
        if model.n_replicas > 1:
            of_all = evaluate(model, "features", X[spread(len(X), CONSISTENCY_ROWS)])
            order = np.arange(model.n_latents)
            state["consistency_"] = restart_consistency(of_all, best, order)
        return state

    def _keep_history(self, history, best):
        columns = history_columns(history, best)
        self.history_ = {name: columns[name] for name in COLUMNS}
        self.history_["cross_entropy"] = [-v for v in columns["log_likelihood"]]
        self.loss_curve_ = columns["loss"]
        self.n_iter_ = len(history.epochs)
        self.n_rollbacks_ = len(history.rollbacks[best])
        self._warn_rollbacks()

    def fit_transform(self, X, y=None, *, u=None):
        """Fit to X and the segments and return the features of X.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training data.
        y : array-like of shape (n_samples,), default=None
            Segment of each row.
        u : array-like of shape (n_samples,), default=None
            Segment of each row, in place of `y`.

        Returns
        -------
        Z : ndarray of shape (n_samples, n_components)
            Features, as :meth:`transform` returns them.
        """
        return self.fit(X, y, u=u).transform(X)

    # -------------------------------------------------------------- inference

    def _lifted(self, X):
        """Validated X, and the model in its precision on the device."""
        check_is_fitted(self)
        X = check_X(self, X, reset=False)
        return X, lifted(self, X.dtype)

    def transform(self, X):
        """Return the features of the rows of X: squared sources up to a linear map.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        Z : ndarray of shape (n_samples, n_components)
            Features after the read-out, in the dtype of X.
        """
        X, model = self._lifted(X)
        features = evaluate(model, "features", X)[0]
        mean, matrix = self._readout
        # Row by row, so that a row's features do not depend on the others.
        columns = (features - mean.astype(features.dtype))[:, None, :]
        return (columns * matrix.astype(features.dtype)).sum(-1)

    def predict_log_proba(self, X):
        """Return the log-probabilities of the segments.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        log_proba : ndarray of shape (n_samples, n_classes)
            Log p(u|x) in nats, columns as in `classes_`.
        """
        X, model = self._lifted(X)
        return evaluate(model, "log_probabilities", X)[0]

    def predict_proba(self, X):
        """Return the probabilities of the segments.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        proba : ndarray of shape (n_samples, n_classes)
            Values of p(u|x), columns as in `classes_`.
        """
        return np.exp(self.predict_log_proba(X))

    def predict(self, X):
        """Return the most probable segment of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        segment : ndarray of shape (n_samples,)
            Entries of `classes_`.
        """
        best = np.argmax(self.predict_log_proba(X), axis=1)
        return self.classes_[best]

    def score(self, X, y=None, *, u=None):
        """Mean log-probability of the segments.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.
        y : array-like of shape (n_samples,), default=None
            Segment of each row.
        u : array-like of shape (n_samples,), default=None
            Segment of each row, in place of `y`.

        Returns
        -------
        score : float
            Mean of log p(u|x) in nats; higher is better, and minus the logarithm of
            the number of equally long segments is chance.
        """
        log_proba = self.predict_log_proba(X)
        _, one_hot = self._labels(X, y, u, self._encoder)
        return float((log_proba * one_hot).sum(axis=1).mean())

    def __sklearn_tags__(self):
        """Say that segments are needed and the dtype of X is kept."""
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        tags.target_tags.required = True
        return tags
