"""What codes without u are worth where the labels were u: iVAE on the digits.

The encoder of q(z|x,u) may leave to p(z|u) what it should learn from x. The bound of
`CovariateInformed` asks it to explain x without u.
"""

from __future__ import annotations

from sklearn.datasets import load_digits
from sklearn.feature_selection import VarianceThreshold
from sklearn.model_selection import train_test_split

from skvae.estimators import iVAE
from skvae.reproductions._measures import linear_accuracy, usage
from skvae.reproductions._table import Cell, Options, Table

N_LATENTS, EPOCHS = 10, 60
COVARIANCES = ["diagonal", "full"]
OBJECTIVES = ["elbo", "covariate_informed"]


def measure(covariance: str, objective: str, seed: int, options: Options) -> dict:
    """Fit one model with labels as u and judge it on held-out rows without them."""
    X, y = load_digits(return_X_y=True)
    X, X_test, y, y_test = train_test_split(
        X / 16.0, y, test_size=0.25, stratify=y, random_state=seed
    )
    varies = VarianceThreshold().fit(X)
    X, X_test = varies.transform(X), varies.transform(X_test)
    estimator = iVAE(
        N_LATENTS,
        covariance=covariance,
        objective=objective,
        max_iter=options.epochs or EPOCHS,
        device="cpu",
        random_state=seed,
    ).fit(X, y)
    mean, std = estimator.posterior(X_test)
    return {
        "epochs": estimator.n_iter_,
        "probe": linear_accuracy(estimator.transform(X), y, mean, y_test),
        "ll": round(float(estimator.score_samples(X_test).mean()), 3),
        "ll_given_u": round(float(estimator.score_samples(X_test, u=y_test).mean()), 3),
        "active": usage(mean, std)["active"],
    }


def cells(options: Options):
    """Every covariance with every objective."""
    objectives = options.chosen(OBJECTIVES, options.methods, "method")
    for seed in options.seed_range(3):
        for covariance in options.chosen(COVARIANCES, options.problems, "problem"):
            for objective in objectives:
                yield Cell(
                    {"covariance": covariance, "objective": objective, "seed": seed},
                    lambda c=covariance, o=objective, s=seed: measure(c, o, s, options),
                )


TABLES = {
    "covariates": Table(
        "Codes without u of an iVAE that was fitted with it",
        "The digits of scikit-learn in [0, 1], three quarters of the rows for "
        "training, pixels that are constant there left out; u is the class. iVAE with "
        f"{N_LATENTS} latents and learned noise. "
        "On held-out rows: accuracy of a logistic regression on posterior means "
        "without u, fitted to those of training rows; log p(x) in nats by 100 "
        "importance-weighted draws without and with u.",
        ("covariance", "objective", "seed"),
        {
            "probe": "{:.3f}",
            "ll": "{:.2f}",
            "ll_given_u": "{:.2f}",
            "active": "{:.0f}",
            "epochs": "{:.0f}",
            "seconds": "{:.0f}",
        },
        cells,
    ),
}
