"""Grid search whose networks train as the replicas of one model."""

from __future__ import annotations

from numbers import Integral

import numpy as np
from joblib import effective_n_jobs, parallel_config
from sklearn.model_selection import GridSearchCV

from skvae._validation import Interval, StrOptions, warn
from skvae.model_selection._batching import BatchingBackend


class BatchedGridSearchCV(GridSearchCV):
    """Grid search that trains the networks of many candidates and folds at once.

    Scores, parameters and refit are those of
    :class:`~sklearn.model_selection.GridSearchCV`; the work is arranged differently.
    The fits of all candidates and folds stop where their networks are to be trained.
    Those of equal shape are stacked into one model with a leading replica axis, trained
    in one loop, and go on with what they got. Pipelines, metadata, callbacks and
    scorers see nothing of it.

    Parameters
    ----------
    estimator : estimator object
        An estimator of this package, or a pipeline or other meta-estimator that
        contains one.
    param_grid : dict or list of dict
        Parameter values to try, as in ``GridSearchCV``.
    scoring : str, callable, list, tuple or dict, default=None
        As in ``GridSearchCV``.
    n_jobs : int, default=None
        Processes among which the fits are divided; each trains its own batches, and
        scores. None is one, in this process, unless a joblib context says otherwise;
        -1 is one per processor.
    refit : bool, str or callable, default=True
        As in ``GridSearchCV``.
    cv : int, cross-validation generator or iterable, default=None
        As in ``GridSearchCV``. Fits train together if they have the same number of
        training rows, so folds that differ by a row make two batches.
    verbose : int, default=0
        As in ``GridSearchCV``; from 1 on it also prints how the fits were grouped.
    pre_dispatch : int or str, default="all"
        How many fits may be on their way at once.
    error_score : "raise" or float, default=np.nan
        As in ``GridSearchCV``.
    return_train_score : bool, default=False
        As in ``GridSearchCV``.
    max_replicas : "auto" or int, default="auto"
        Replicas at which a batch is trained. "auto" decides by the number of
        parameters: 64 for small networks, down to 8 for those of which more would not
        stay in the cache.

    Attributes
    ----------
    batches_ : list of dict
        The batches in the order of their training: "fits", pairs of candidate and
        split; "n_replicas"; "seconds". A restart of `n_init` counts as a replica.
    unstacked_ : list of tuple
        Pairs of candidate and split whose fit could not share a batch at all.
    cv_results_ : dict
        As in ``GridSearchCV``. The fit time of a candidate holds its share of the
        batches' time.
    best_estimator_, best_score_, best_params_, best_index_, scorer_, n_splits_, \
refit_time_, multimetric_
        As in ``GridSearchCV``.

    See Also
    --------
    sklearn.model_selection.GridSearchCV : The same search, one fit at a time or in
        several processes.

    Notes
    -----
    `beta`, `learning_rate`, `random_state`, a warm-up, fixed noise and the data may
    differ within a batch. What changes shapes or functions (`n_components`, `width`,
    `depth`, `batch_size`, `max_iter`, the parts) makes batches of its own.

    Every replica draws the random numbers that it would draw alone, so results differ
    from those of ``GridSearchCV`` by rounding only: batched matrix products add in
    another order.

    In one process, networks train with the threads that torch has, and steps that
    train no networks run one after the other. `n_jobs` divides both: processes of one
    thread each make more of several cores than one process with several threads.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAE
    >>> from skvae.model_selection import BatchedGridSearchCV
    >>> X = load_iris().data
    >>> vae = VAE(n_components=1, width=16, max_iter=30, random_state=0)
    >>> grid = {"beta": [0.5, 1.0, 4.0]}
    >>> search = BatchedGridSearchCV(vae, grid, cv=3).fit(X)
    >>> search.best_params_
    {'beta': 0.5}
    >>> [batch["n_replicas"] for batch in search.batches_]
    [9]
    """

    _parameter_constraints: dict = {
        **GridSearchCV._parameter_constraints,
        "max_replicas": [
            StrOptions({"auto"}),
            Interval(Integral, 1, None, closed="left"),
        ],
    }

    def __init__(
        self,
        estimator,
        param_grid,
        *,
        scoring=None,
        n_jobs=None,
        refit=True,
        cv=None,
        verbose=0,
        pre_dispatch="all",
        error_score=np.nan,
        return_train_score=False,
        max_replicas="auto",
    ):
        super().__init__(
            estimator,
            param_grid,
            scoring=scoring,
            n_jobs=n_jobs,
            refit=refit,
            cv=cv,
            verbose=verbose,
            pre_dispatch=pre_dispatch,
            error_score=error_score,
            return_train_score=return_train_score,
        )
        self.max_replicas = max_replicas

    def fit(self, X, y=None, **params):
        """Search, and refit the best candidate.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training data.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            Target, for the steps and scorers that have one.
        **params : dict of str to object
            Metadata for the estimator, the scorer and the splitter, as in
            ``GridSearchCV``: `sample_weight` and `u` are split with X.

        Returns
        -------
        self : object
            The fitted search.
        """
        automatic = self.max_replicas == "auto"
        backend = BatchingBackend(
            None if automatic else self.max_replicas, effective_n_jobs(self.n_jobs)
        )
        self._batching = backend, parallel_config(backend=backend)
        try:
            super().fit(X, y, **params)
        finally:
            self._end_batching()
            backend.terminate()
            del self._batching
        return self

    def __getstate__(self):
        # scikit-learn hands the search to every task, and so to other processes.
        state = super().__getstate__()
        return {name: value for name, value in state.items() if name != "_batching"}

    def _end_batching(self):
        """Give nested parallel work, in the refit for instance, its own backend."""
        backend, active = self._batching
        if active is not None:
            active.unregister()
            self._batching = backend, None

    def _run_search(self, evaluate_candidates, *, callback_ctx=None):
        # By now scikit-learn's Parallel has taken the backend that was active.
        self._end_batching()
        super()._run_search(evaluate_candidates, callback_ctx=callback_ctx)
        self._report(self._batching[0])

    def _report(self, backend):
        def place(number):
            return divmod(number, self.n_splits_)

        self.batches_ = [
            {
                "fits": [place(number) for number in batch["tasks"]],
                "n_replicas": batch["n_replicas"],
                "seconds": batch["seconds"],
            }
            for batch in backend.batches
        ]
        self.unstacked_ = [
            place(task.number)
            for task in backend.tasks
            if task.alone or not (task.trained or task.failed)
        ]
        if self.verbose > 0:
            for batch in self.batches_:
                print(
                    f"Trained {len(batch['fits'])} fits, {batch['n_replicas']} "
                    f"replicas, in {batch['seconds']:.1f}s"
                )
        if self.unstacked_:
            warn(
                f"{len(self.unstacked_)} of {len(backend.tasks)} fits trained one by "
                "one, because they hold no network of this package or their inference "
                "procedure steps through all rows in its own way; unstacked_ lists "
                "them. GridSearchCV(n_jobs=...) spreads such fits over processes."
            )
