"""Specifications: the parts of a model as objects scikit-learn can clone and search."""

from __future__ import annotations

from sklearn.base import BaseEstimator, clone


class Specification(BaseEstimator):
    """Base of every part a user may pass to an estimator.

    It has parameters and a ``build`` method, and no ``fit``. `clone`, `repr` and
    nested grids (``decoder__depth``) come from scikit-learn.
    """

    _doc_link_module = "skvae"
    _parameter_constraints: dict = {}

    family = None
    """What kind of part it is; parts of one family may stand for each other."""


def resolve(part, table, **defaults):
    """Turn a constructor argument into a specification of its own.

    Parameters
    ----------
    part : str or object with a ``build`` method
        A name of `table`, or a specification, which is cloned.
    table : dict of str to type
        The family's names.
    **defaults
        Parameters given to the class when `part` is a name; those that the class
        does not have are left out.

    Returns
    -------
    specification : object with a ``build`` method
    """
    if not isinstance(part, str):
        known = (getattr(entry, "family", None) for entry in table.values())
        families = list(dict.fromkeys(filter(None, known)))
        if isinstance(part, type) or getattr(part, "family", None) not in families:
            needed = " or ".join(families)
            raise TypeError(
                f"{part!r} was passed where a {needed} is needed. Pass one of "
                f"{sorted(table)} or an instance of a {needed} specification."
            )
        specification = clone(part)
    else:
        specification = table[part]()
        known = specification.get_params(deep=False)
        specification.set_params(
            **{name: value for name, value in defaults.items() if name in known}
        )
    specification._validate_params()
    return specification
