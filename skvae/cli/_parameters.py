"""Constructor parameters written on a command line."""

from __future__ import annotations

import ast

from skvae.cli._files import closest
from skvae.estimators import all_estimators, sequence_estimators


def known_estimators():
    """Classes by name: those for tables, then those for documents."""
    classes = [*all_estimators(), *sequence_estimators()]
    return {cls.__name__: cls for cls in classes}


def estimator_class(name):
    """The class of a name, in any case."""
    known = known_estimators()
    by_case = {key.lower(): cls for key, cls in known.items()}
    if name.lower() not in by_case:
        raise ValueError(f"Unknown estimator {name!r}.{closest(name, known)}")
    return by_case[name.lower()]


def literal(text):
    """A Python value, or the text itself where it is none."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def parameters_from(cls, assignments, *, among=()):
    """Parameters of a class from ``name=value`` texts.

    Names that another class of those in `among` has are passed over.
    """
    names = sorted(cls().get_params(deep=False))
    others = set().union(*(other().get_params(deep=False) for other in among))
    found = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise ValueError(f"{assignment!r} is not of the form name=value.")
        if name in names:
            found[name] = literal(text)
        elif name not in others:
            raise ValueError(
                f"{cls.__name__} has no parameter {name!r}.{closest(name, names)}"
            )
    return found
