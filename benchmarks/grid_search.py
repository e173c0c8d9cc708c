"""A grid search over beta, five folds and three seeds, in one process and in two.

Digits, VAE of width 64, 4 betas x 3 seeds x 5 folds = 60 fits. Each contestant runs in
a process of its own, with the threads that torch takes by default, and is timed from
`fit` to the end of it: the start of worker processes counts, imports before `fit` do
not. A machine that does other work favours contestants with more processes in seconds
of the clock; seconds of the processor, of those that use one process, do not mind it.

    python benchmarks/grid_search.py
"""

import json
import os
import subprocess
import sys
import time
import warnings

import numpy as np
from _common import append, done, parser, table, write_table

CONTESTANTS = {
    "batched": {},
    "batched, one thread": {"threads": 1},
    "GridSearchCV(n_jobs=2)": {"n_jobs": 2},
    "GridSearchCV(n_jobs=1)": {"n_jobs": 1},
    "GridSearchCV(n_jobs=1), one thread": {"n_jobs": 1, "threads": 1},
}
REFERENCES = "GridSearchCV(n_jobs=2)", "GridSearchCV(n_jobs=1), one thread"
GRID = {"beta": [0.5, 1.0, 2.0, 4.0], "random_state": [0, 1, 2]}


def search(contestant, max_iter):
    """Run one contestant here; its seconds and its scores."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import GridSearchCV

    from skvae import VAE
    from skvae.model_selection import BatchedGridSearchCV

    warnings.simplefilter("ignore")
    os.environ["PYTHONWARNINGS"] = "ignore"
    X = load_digits().data / 16.0
    vae = VAE(10, width=64, max_iter=max_iter)
    options = CONTESTANTS[contestant]
    cls = GridSearchCV if "n_jobs" in options else BatchedGridSearchCV
    tuned = cls(vae, GRID, cv=5, refit=False, n_jobs=options.get("n_jobs"))
    started, processor = time.perf_counter(), time.process_time()
    tuned.fit(X)
    return {
        "seconds": time.perf_counter() - started,
        "processor_seconds": time.process_time() - processor,
        "scores": tuned.cv_results_["mean_test_score"].tolist(),
    }


def measured(contestant, max_iter):
    """What :func:`search` finds in a fresh process."""
    environment = dict(os.environ)
    environment.pop("OMP_NUM_THREADS", None)
    if "threads" in CONTESTANTS[contestant]:
        environment["OMP_NUM_THREADS"] = str(CONTESTANTS[contestant]["threads"])
    command = [sys.executable, __file__, "--one", contestant]
    answer = subprocess.run(
        [*command, "--max-iter", str(max_iter)],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(answer.stdout.splitlines()[-1])


def compare(arguments):
    """Interleaved repetitions; ratios are taken within each."""
    known = done(arguments.output, ["repetition"])
    for repetition in range(arguments.repetitions):
        if (str(repetition),) in known:
            continue
        load = os.getloadavg()[0]
        found = {
            name: measured(name, arguments.max_iter) for name in arguments.contestants
        }
        reference = found.get(REFERENCES[1], next(iter(found.values())))
        for name, result in found.items():
            difference = np.array(result["scores"]) / np.array(reference["scores"]) - 1
            ratios = {
                f"faster than {other}": found[other]["seconds"] / result["seconds"]
                if other in found
                else ""
                for other in REFERENCES
            }
            single = CONTESTANTS[name].get("n_jobs") != 2
            append(
                arguments.output,
                {
                    "repetition": repetition,
                    "contestant": name,
                    "epochs": arguments.max_iter,
                    "seconds": round(result["seconds"], 2),
                    "processor seconds": round(result["processor_seconds"], 2)
                    if single
                    else "",
                    **{k: round(v, 3) if v else "" for k, v in ratios.items()},
                    "largest score difference": f"{np.abs(difference).max():.2g}",
                    "load": load,
                },
            )


if __name__ == "__main__":
    arguments = parser(__doc__, "grid_search")
    arguments.add_argument("--repetitions", type=int, default=5)
    arguments.add_argument("--max-iter", type=int, default=100)
    arguments.add_argument("--contestants", nargs="+", default=list(CONTESTANTS))
    arguments.add_argument("--one", help="run one contestant in this process")
    arguments = arguments.parse_args()
    if arguments.one:
        print(json.dumps(search(arguments.one, arguments.max_iter)))
    else:
        compare(arguments)
        columns = ["seconds", "processor seconds"]
        columns += [f"faster than {other}" for other in REFERENCES]
        write_table(
            arguments.output,
            table(
                arguments.output,
                ["contestant", "epochs"],
                [*columns, "largest score difference"],
                ["{:.1f}", "{:.1f}", "{:.2f}", "{:.2f}", "{:.1e}"],
            ),
        )
