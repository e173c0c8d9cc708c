"""What happens inside `fit` and `partial_fit`, from validation to fitted attributes."""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from skvae import __version__
from skvae._collapse import PosteriorCollapseWarning, collapse_message
from skvae._distributed import ranks
from skvae._random import streams
from skvae._training import SCHEDULES, Settings, bound, train
from skvae._validation import (
    check_constant_columns,
    check_random_state,
    check_sample_weight,
    warn,
)
from skvae.estimators._fitting import (
    build_model,
    draw_seeds,
    drawn,
    history_columns,
    largest_variance,
    prepare,
    resolve_device,
    restart_consistency,
    resume_streams,
    split,
    stream_state,
    subset,
    summarise,
    to_data,
    unchanged_on_error,
)
from skvae.estimators._stacking import TRAINER
from skvae.metrics import active_units

# Attributes that some fits set and others do not; none may outlive a new fit.
SOMETIMES_FITTED = (
    "_stream_state",
    "_optimizer_state",
    "consistency_",
    "inverse_lipschitz_",
    "noise_variance_",
    "validation_scores_",
)


class Run(NamedTuple):
    """What training works on and what its results are read from."""

    model: object
    inference: object
    data: object
    seeds: list
    score_seed: int


class TrainingSteps:
    """Mixin with the private steps; the surface is in `_base`."""

    def _check_settings(self):
        if self.warm_start and self.n_init > 1:
            raise ValueError(
                "warm_start continues one model and n_init starts several. Use "
                "n_init=1 with warm_start=True."
            )

    def _n_latents(self, n_features):
        """Number of latents of a model for so many features."""
        return self.n_components

    def _step_size(self):
        return self.learning_rate

    def _settings(self, n_rows, max_epochs, progress=None):
        batch_size = self.batch_size
        if batch_size == "auto":
            # At least 32 steps an epoch, so that small data are learned too.
            batch_size = int(np.clip(n_rows // 32, 16, 128))
        schedule = "constant" if self.early_stopping or progress else self.schedule
        return Settings(
            max_epochs=max_epochs,
            batch_size=min(batch_size, n_rows),
            learning_rate=self._step_size(),
            schedule=SCHEDULES[schedule],
            patience=self.n_iter_no_change if self.early_stopping else None,
            tol=self.tol,
            progress=progress,
        )

    def _inputs(self, X, y, u, sample_weight, *, reset, **options):
        """Validated data on the device, and the parts that model them."""
        X = self._check_X(X, reset=reset)
        weight = check_sample_weight(sample_weight, X)
        U = self._auxiliary(X, y, u, reset=reset, **options)
        parts = self._parts(conditional=U is not None)
        if reset:
            constant = check_constant_columns(self, X)
            if constant and parts.likelihood.domain == "real":
                warn(constant)
        # Only ratios count; rows of weight zero would leave batches without weight.
        if sample_weight is None:
            weight = np.broadcast_to(np.float32(1.0), weight.shape)
        else:
            share = np.empty(len(weight), dtype=np.float32)
            weight = np.divide(weight, weight.max(), out=share, casting="same_kind")
        kept = slice(None) if weight.all() else weight > 0
        U = None if U is None else U[kept]
        data = to_data(X[kept], U, weight[kept], resolve_device(self.device))
        return X, parts, data

    def _fit(self, X, y, u, sample_weight):
        with unchanged_on_error(self):
            self._validate_params()
            self._check_settings()
            X, parts, data = self._inputs(X, y, u, sample_weight, reset=True)
            score_seed, seeds = draw_seeds(
                check_random_state(self.random_state), self.n_init
            )
            model = self._start_model(parts, data, seeds)
            training, validation = data, None
            if self.early_stopping:
                training, validation = split(
                    data, self.validation_fraction, seeds[0].shuffle
                )
                validation = drawn(model, validation)
            inference = parts.inference.build()
            run = Run(model, inference, data, seeds, score_seed)
            task = {
                "estimator": self,
                "X": X,
                "y": y,
                "metadata": {
                    name: value
                    for name, value in (("sample_weight", sample_weight), ("u", u))
                    if value is not None
                },
            }
            context = self._init_callback_context(max_subtasks=self.max_iter)
            context.call_on_fit_task_begin(**task)
            history = TRAINER.get()(
                model,
                training,
                objective=parts.objective.build(
                    self.beta, model.prior, training.n_rows
                ),
                inference=inference,
                settings=self._settings(training.n_rows, self.max_iter),
                seeds=seeds,
                begin_epoch=self._epochs(context, run, task),
                validation=validation,
            )
            judged = subset(data if validation is None else validation)
            judged = drawn(model, judged)
            bounds = bound(model, inference, judged, seeds).tolist()
            best = int(np.argmax(bounds))
            state = self._fitted_state(run, best)
            state["best_bound_"] = bounds[best]
            state["_seeds"] = [seeds[best]]
            state.update(self._history_state(history, best))
            for leftover in SOMETIMES_FITTED:
                self.__dict__.pop(leftover, None)
            vars(self).update(state)
            self._warn(history, data)
            context.call_on_fit_task_end(**task, reconstruction_attributes={})
        return self

    def _start_model(self, parts, data, seeds):
        """A new model on the device, or the fitted one where fits continue."""
        n_features, auxiliary = data.x.shape[1], self._auxiliary_shape()
        n_latents = self._n_latents(n_features)
        model = build_model(parts, n_latents, n_features, auxiliary, seeds)
        model = model.to(data.device)
        prepare(model, data, auxiliary)
        if self.warm_start and hasattr(self, "module_"):
            # Into a new model, so that parts which changed in between count.
            shapes = [
                {name: p.shape for name, p in module.named_parameters()}
                for module in (self.module_, model)
            ]
            if shapes[0] == shapes[1]:
                state = self.module_.state_dict()
                of_data = {"prior.grid", "prior.grid_log_weights"}
                kept = model.state_dict().keys() - of_data
                model.load_state_dict({k: state[k] for k in kept}, strict=False)
        return model

    def _epochs(self, context, run, task):
        """What the loop calls at the start and the end of each epoch."""
        count = 0

        def begin_epoch():
            epoch = context.subcontext(task_name="epoch")
            epoch.call_on_fit_task_begin(**task)

            def end_epoch(row):
                nonlocal count
                count += 1
                if self.verbose and ranks().rank == 0:
                    self._print(count, row)
                return epoch.call_on_fit_task_end(
                    **task,
                    reconstruction_attributes=lambda: self._fitted_state(run, 0),
                )

            return end_epoch

        return begin_epoch

    def _print(self, count, row):
        text = f"[{type(self).__name__}] Iteration {count}, loss = {row.loss[0]:.4f}"
        if self.verbose > 1:
            text += f", log-likelihood = {row.log_likelihood[0]:.4f}"
            text += f", KL = {row.kl[0]:.4f}, KL weight = {row.kl_weight:.3g}"
        print(f"{text}, time = {row.seconds:.2f}s")

    def _fitted_state(self, run, best):
        """All attributes that make `self` ready to transform, from a trained model."""
        model = run.model
        rows = drawn(model, subset(run.data))
        means, kl = summarise(model, run.inference, rows, run.seeds)
        order = np.argsort(-kl[best], kind="stable")
        ranked = kl[best][order]
        module = model.select(best).to("cpu")
        module.requires_grad_(False)
        state = {
            "module_": module,
            "_order": order,
            "_inference": run.inference,
            "_score_seed": run.score_seed,
            "_n_features_out": model.n_latents,
            "_skvae_version": __version__,
            "kl_per_component_": ranked,
            "explained_kl_ratio_": ranked / max(ranked.sum(), np.finfo(float).tiny),
            "active_components_": active_units(means[best][:, order]).mask,
        }
        noise = module.likelihood.noise_variance()
        if noise is not None:
            noise = noise[0].double().numpy()
            state["noise_variance_"] = float(noise[0]) if len(noise) == 1 else noise
        if hasattr(module.decoder, "inverse_lipschitz"):
            slope = float(module.decoder.inverse_lipschitz()[0] * module.frame.unit)
            state["inverse_lipschitz_"] = slope
        if model.n_replicas > 1:
            state["consistency_"] = restart_consistency(means, best, order)
        return state

    def _history_state(self, history, best):
        columns = history_columns(history, best)
        state = {"n_iter_": len(history.epochs), "history_": columns}
        earlier = getattr(self, "loss_curve_", []) if self.warm_start else []
        state["loss_curve_"] = [*earlier, *columns["loss"]]
        if "validation_bound" in columns:
            state["validation_scores_"] = columns["validation_bound"]
        state["n_rollbacks_"] = len(history.rollbacks[best])
        return state

    def _warn_rollbacks(self):
        if self.n_rollbacks_:
            warn(
                f"Training of {type(self).__name__} turned non-finite "
                f"{self.n_rollbacks_} time(s) and went on from the last good weights "
                "with half the learning rate. Scale X or lower learning_rate.",
                ConvergenceWarning,
            )

    def _warn(self, history, data):
        self._warn_rollbacks()
        ended = len(history.epochs) == self.max_iter
        if self.early_stopping and ended and not history.stopped_by_patience:
            warn(
                f"max_iter={self.max_iter} was reached before the bound on held-out "
                f"rows stood still for n_iter_no_change={self.n_iter_no_change} "
                "epochs. Raise max_iter or tol.",
                ConvergenceWarning,
            )
        if self.active_components_.all():
            return
        noise, largest = getattr(self, "noise_variance_", None), 0.0
        if noise is not None:
            noise = float(np.mean(noise))
            largest = largest_variance(data)
        slope = getattr(self, "inverse_lipschitz_", None)
        if getattr(self.module_.decoder, "has_loose_certificate", False):
            slope = None
        message = collapse_message(
            type(self).__name__,
            self.active_components_,
            self.beta,
            noise,
            largest,
            history.stopped_by_patience,
            slope,
        )
        warn(message, PosteriorCollapseWarning)

    def _partial_fit(self, X, y, u, sample_weight, **options):
        first = not hasattr(self, "module_")
        with unchanged_on_error(self):
            if first:
                self._validate_params()
            if self.early_stopping or self.n_init > 1:
                raise ValueError(
                    "partial_fit trains one model on the rows it is given; use it "
                    "with early_stopping=False and n_init=1."
                )
            X, parts, data = self._inputs(
                X, y, u, sample_weight, reset=first, **options
            )
            device = data.device
            if first:
                score_seed, seeds = draw_seeds(check_random_state(self.random_state), 1)
                auxiliary = self._auxiliary_shape()
                model = build_model(
                    parts, self._n_latents(X.shape[1]), X.shape[1], auxiliary, seeds
                ).to(device)
                prepare(model, data, auxiliary)
                draws, optimizer_state = streams(seeds, device), None
            else:
                score_seed, seeds = self._score_seed, self._seeds
                model = copy.deepcopy(self.module_).requires_grad_(True).to(device)
                optimizer_state = getattr(self, "_optimizer_state", None)
                draws = streams(seeds, device)
                if optimizer_state is not None:
                    draws = resume_streams(self._stream_state, device)
            run = Run(model, parts.inference.build(), data, seeds, score_seed)
            history = train(
                model,
                data,
                objective=parts.objective.build(
                    self.beta, model.prior, data.x.shape[0]
                ),
                inference=run.inference,
                settings=self._settings(X.shape[0], 1, progress=1.0),
                seeds=seeds,
                begin_epoch=lambda: lambda row: False,
                draws=draws,
                optimizer_state=optimizer_state,
            )
            losses = [] if first else self.loss_curve_
            vars(self).update(self._fitted_state(run, 0))
            self._seeds = seeds
            self._stream_state = stream_state(draws)
            self._optimizer_state = history.optimizer_state
            self.loss_curve_ = [*losses, history.epochs[0].loss[0]]
            self.n_iter_ = len(self.loss_curve_)
            self.n_rollbacks_ = len(history.rollbacks[0])
            self._warn_rollbacks()
        return self
