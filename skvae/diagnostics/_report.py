"""What an identifiability report holds, and how it reads."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from skvae.diagnostics._intervals import Estimate


@dataclass(frozen=True)
class PermutedNull:
    """The same model on the same rows, with u permuted at random.

    Attributes
    ----------
    n_permutations : int
        How many permutations were drawn; each was fitted with all restarts.
    consistency : Estimate
        Mean matched correlation of a restart with the others of its permutation.
    consistency_gap : Estimate
        How much larger it is with the true u.
    agreement : float
        Mean matched correlation of the null's restarts with the reference.
    log_likelihood_gap : Estimate or None
        How much higher log p(x|u) of held-out rows is with the true u, in nats per
        row. None where the estimator has no `score_samples`.
    rank : list of int
        Rank of the L-matrix (or of the mixture's means) learned by each null fit.
    condition : list of float
        Its condition numbers.
    """

    n_permutations: int
    consistency: Estimate
    consistency_gap: Estimate
    agreement: float
    log_likelihood_gap: Estimate | None
    rank: list
    condition: list

    @property
    def u_matters(self):
        """Whether the true u raises the held-out likelihood, at the 95% level.

        Where there is no likelihood, whether it raises the consistency.
        """
        gap = self.log_likelihood_gap or self.consistency_gap
        return gap.low > 0


@dataclass(frozen=True)
class IdentifiabilityReport:
    """What :func:`identifiability_report` returns; `print` it.

    Attributes
    ----------
    estimator : str
        Name of the class.
    reference : str
        Whose components are numbered: "the fitted estimator" or "the best restart".
    n_restarts, n_near : int
        Restarts with the true u, and how many fit about as well as the best; the
        others count for nothing below.
    n_train, n_held_out : int
        Rows they were fitted to, and rows they are judged on.
    consistency : list of Estimate
        For each component of the reference, the mean absolute correlation with its
        match in the restarts; NaN for a collapsed component.
    correlations : ndarray of shape (n_compared, n_components)
        The correlations behind it, one row per restart that is not the reference.
    chance : float
        Mean matched correlation of a random rotation of the active components.
    chance_bound : float
        What 97.5% of rotations leave below, for a mean over that many restarts.
    active, active_given_u, reproducible : ndarray of bool of shape (n_components,)
        Whether the posterior mean varies over the rows, whether it still varies among
        rows of equal u, and whether restarts find the component again.
    variance_given_u : ndarray of shape (n_components,)
        Variance of the posterior mean among rows of equal u, as a share of the
        latent's own (that of the posterior included).
    theorem : str or None
        The theorem whose assumptions the estimator checks.
    assumptions_hold : bool or None
        Whether they all hold in the reference.
    missing_assumptions : list of str
        Those that do not.
    rank : list of int
        Rank of the L-matrix, or of the means of a mixture prior, in each restart.
    full_rank : int or None
        The rank that the theorem needs.
    condition : list of float
        Condition numbers of the same matrices.
    log_likelihoods : list of float or None
        Mean log p(x|u) of held-out rows, in nats, for each restart.
    null : PermutedNull or None
        The comparison with permuted u; None where the estimator takes no u.
    seed : int
        The `random_state` of the restarts; with ``n_init=n_restarts`` and the same
        rows an estimator repeats them.
    """

    estimator: str
    reference: str
    n_restarts: int
    n_near: int
    n_train: int
    n_held_out: int
    consistency: list
    correlations: np.ndarray
    chance: float
    chance_bound: float
    active: np.ndarray
    active_given_u: np.ndarray
    reproducible: np.ndarray
    variance_given_u: np.ndarray
    theorem: str | None
    assumptions_hold: bool | None
    missing_assumptions: list
    rank: list
    full_rank: int | None
    condition: list
    log_likelihoods: list | None
    null: PermutedNull | None
    seed: int

    @property
    def states(self):
        """One word or two for each component."""
        words = []
        for alive, own, same in zip(
            self.active, self.active_given_u, self.reproducible, strict=True
        ):
            state = "reproducible" if same else "not reproducible"
            state = state if own else "only repeats u"
            words.append(state if alive else "collapsed")
        return words

    @property
    def verdict(self):
        """The report in one plain sentence."""
        clauses = [_reproducibility(self), _without_news(self), _role_of_u(self)]
        if self.assumptions_hold is not None:
            missing = ", ".join(self.missing_assumptions)
            verdict = f"missing: {missing}" if missing else "all assumptions hold"
            clauses.append(f"for {self.theorem}, {verdict}")
        return "; ".join(clause for clause in clauses if clause) + "."

    def to_dict(self):
        """Numbers, lists and strings alone, ready for JSON.

        Returns
        -------
        report : dict
            The attributes, with `states` and `verdict`.
        """
        found = {**asdict(self), "states": self.states, "verdict": self.verdict}
        return _plain(found)

    def __str__(self):
        lines = [
            f"Identifiability of {self.estimator}: {self.n_restarts} restarts on "
            f"{self.n_train:,} rows, judged on {self.n_held_out:,} held-out rows; "
            f"components are those of {self.reference}.",
            "",
            f"{'component':<10} {'consistency':<22} {'variance given u':<17} state",
        ]
        for i, state in enumerate(self.states):
            own = "-" if not self.active[i] else str(self.consistency[i])
            lines.append(f"{i:<10} {own:<22} {self.variance_given_u[i]:<17.2f} {state}")
        lines += ["", *self.details(), "", self.verdict]
        return "\n".join(lines)

    def __repr__(self):
        return f"<IdentifiabilityReport: {self.verdict}>"

    def details(self):
        """What stands below the table.

        Returns
        -------
        lines : list of str
            Chance level, the theorem's matrix, likelihoods, the null and the seed.
        """
        lines = []
        if self.chance:
            lines.append(f"By chance (random rotation): {self.chance:.2f}")
        if self.full_rank is not None:
            lines.append(
                f"Rank {_span(self.rank, 'd')} of {self.full_rank}, condition number "
                f"{_span(self.condition, '.3g')} over restarts"
            )
        if self.log_likelihoods is not None:
            lines.append(
                f"log p(x) of restarts: {_span(self.log_likelihoods, '.2f')} nats per "
                f"row, {self.n_near} of {self.n_restarts} near the best"
            )
        null = self.null
        if null is not None:
            lines += [
                f"With u permuted ({null.n_permutations} times):",
                f"  restarts agree      {null.consistency}",
                f"  the true u adds     {null.consistency_gap}",
                f"  with the reference  {null.agreement:.2f}",
            ]
            if null.log_likelihood_gap is not None:
                gap = null.log_likelihood_gap
                lines.append(f"  log p(x|u) loses    {gap} nats per row")
            if null.rank:
                lines.append(
                    f"  rank {_span(null.rank, 'd')}, condition number "
                    f"{_span(null.condition, '.3g')}"
                )
        return [*lines, f"Seed of the restarts: {self.seed}"]


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def _span(values, form):
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def _named(mask):
    """``component 1``, ``components 0 to 2`` or ``components 0, 2 and 5``."""
    chosen = np.flatnonzero(mask).tolist()
    if len(chosen) == 1:
        return f"component {chosen[0]}"
    if len(chosen) > 2 and chosen[-1] - chosen[0] == len(chosen) - 1:
        return f"components {chosen[0]} to {chosen[-1]}"
    return f"components {', '.join(map(str, chosen[:-1]))} and {chosen[-1]}"


def _count(mask):
    return "is" if np.sum(mask) == 1 else "are"


def _counted(report):
    n, k = report.n_restarts, report.n_near
    return str(n) if n == k else f"the best {k} of {n}"


def _reproducibility(report):
    active, found = report.active, report.reproducible
    if not active.any():
        return f"All {len(active)} components are collapsed"
    if not len(report.correlations):
        return (
            f"Nothing can be said about reproducibility, because only {report.n_near} "
            f"of {report.n_restarts} restarts came near the best likelihood"
        )
    shown = found if found.any() else active
    values = [report.consistency[i].value for i in np.flatnonzero(shown)]
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    values = low if low == high else f"{low} to {high}"
    detail = f"{values} over {_counted(report)} restarts"
    if report.chance:
        detail += f", {report.chance:.2f} by chance"
    if not found.any():
        return f"No component of {len(active)} is reproducible ({detail})"
    text = f"{_named(found).capitalize()} of {len(active)} {_count(found)} reproducible"
    text += f" ({detail})"
    lost = active & ~found
    if lost.any():
        text += f", {_named(lost)} {_count(lost)} not"
    return text


def _without_news(report):
    """Collapsed components, and those that only repeat u."""
    dead = ~report.active
    copies = report.active & ~report.active_given_u
    clauses = []
    if dead.any() and not dead.all():
        clauses.append(f"{_named(dead)} {_count(dead)} collapsed")
    if copies.any():
        verb = "repeats" if copies.sum() == 1 else "repeat"
        clauses.append(f"{_named(copies)} only {verb} u")
    return "; ".join(clauses)


def _role_of_u(report):
    null = report.null
    if not report.active.any():
        return ""
    if null is None:
        if not report.reproducible.any():
            return ""
        return "no u was used, so the data, the prior or a shared bias decide them"
    cost = ""
    if null.log_likelihood_gap is not None:
        low, high = null.log_likelihood_gap[1:]
        cost = f": permuting it costs {low:.2f} to {high:.2f} nats per row"
        if not np.isfinite(high - low):
            return "too few restarts came near the best to tell what u contributes"
    if not null.u_matters:
        return f"no use of u is seen{cost}"
    low, high = null.consistency_gap[1:]
    if low > 0:
        part = f"helps to identify them (consistency higher by {low:.2f} to {high:.2f})"
        return f"u {part}{cost}"
    if high < 0:
        return f"restarts agree less with u than without it, though u is used{cost}"
    return f"restarts agree as well without u, though it is used{cost}"
