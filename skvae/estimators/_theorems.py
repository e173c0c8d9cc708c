"""Which identifiability theorem a fitted model falls under, and what is missing."""

from __future__ import annotations


def assumptions(module):
    """Check the assumptions of the theorem that fits the model's prior.

    Parameters
    ----------
    module : LatentVariableModel
        A fitted model with one replica.

    Returns
    -------
    report : dict
        "theorem", "up_to" (what remains free if all assumptions hold), "holds", and
        "assumptions", a dict of (bool, explanation), with the numbers behind them.
    """
    report = module.prior.assumptions()
    decoder = module.decoder
    slope = None
    if hasattr(decoder, "inverse_lipschitz"):
        slope = float(decoder.inverse_lipschitz()[0] * module.frame.unit)
    checked = dict(report.pop("assumptions"))
    checked["injective decoder"] = (
        slope is not None,
        "not certified: an unconstrained network may fold the latents"
        if slope is None
        else f"certified: |f(z) - f(z')| >= {slope:.3g} |z - z'|",
    )
    if report.pop("needs_piecewise_affine"):
        affine = bool(getattr(decoder, "piecewise_affine", False))
        checked["piecewise affine decoder"] = (
            affine,
            "all activations are piecewise affine"
            if affine
            else "use activation='relu' or 'leaky_relu' in the decoder",
        )
    holds = all(fine for fine, _ in checked.values())
    return {**report, "holds": holds, "assumptions": checked, "certificate": slope}
