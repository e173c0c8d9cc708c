"""Which of scikit-learn's checks every estimator passes, as a markdown table.

Run as ``SCIPY_ARRAY_API=1 python benchmarks/conformance.py``; without the variable the
array API check is skipped. The expected failures, the extra checks and the small
instances are those of ``tests/test_common.py``.
"""

import runpy
import warnings
from collections import Counter
from pathlib import Path

import sklearn.utils.estimator_checks as checks

TESTS = Path(__file__).parents[1] / "tests" / "test_common.py"
COLUMNS = [
    "estimator",
    "checks yielded",
    "passed",
    "failed",
    "expected failures",
    "skipped",
    "extra checks passed",
]


def yielded_checks(estimator, expected_failures):
    """Counts of the outcomes of all checks that `check_estimator` yields."""
    results = checks.check_estimator(
        estimator,
        expected_failed_checks=expected_failures,
        on_skip=None,
        on_fail=None,
    )
    return Counter(result["status"] for result in results)


def extra_checks(make, names):
    """How many of the checks left out of `check_estimator` raise nothing."""
    passed = 0
    for name in names:
        estimator = make()
        try:
            getattr(checks, name)(type(estimator).__name__, estimator)
        except Exception as error:
            print(f"{type(estimator).__name__}, {name}: {error}")
        else:
            passed += 1
    return passed


def conformance_table():
    """One row per estimator with its default parts, in markdown."""
    tests = runpy.run_path(str(TESTS))
    extra = tests["EXTRA_CHECKS"]
    lines = [COLUMNS, ["---"] + ["---:"] * (len(COLUMNS) - 1)]
    for cls in tests["all_estimators"]():
        found = yielded_checks(tests["small"](cls), tests["EXPECTED_FAILURES"])
        passed = extra_checks(lambda cls=cls: tests["small"](cls), extra)
        lines.append(
            [
                f"`{cls.__name__}`",
                found.total(),
                found["passed"],
                found["failed"],
                found["xfail"],
                found["skipped"],
                f"{passed} of {len(extra)}",
            ]
        )
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


if __name__ == "__main__":
    # The checks' own data collapse, hold constant columns, and mix frames and arrays.
    warnings.simplefilter("ignore")
    print(conformance_table())
