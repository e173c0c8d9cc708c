"""A grid search in one batch, in one process and in two; and a worker's cold start.

    python benchmarks/speed/grid_search.py

Digits, VAE of width 64, 4 betas x 3 seeds x 5 folds = 60 fits. Each contestant runs in
a process of its own. Worker processes are warm: they have fitted once before the clock
starts. Two processes need two free cores, or the ratio says nothing; the load stands in
the table.
"""

import json
import sys
import time
import warnings
from functools import partial

import numpy as np
from _measure import Study, Target, interleaved, seconds_of, timed

# The last is what `max_iter` is by default.
EPOCHS = 5, 20, 100
GRID = {"beta": [0.5, 1.0, 2.0, 4.0], "random_state": [0, 1, 2]}
COLD = "a worker's cold start"
BATCHED_PROCESSES, BATCHED, PROCESSES, ONE = (
    "BatchedGridSearchCV(n_jobs=2)",
    "BatchedGridSearchCV(n_jobs=1)",
    "GridSearchCV(n_jobs=2)",
    "GridSearchCV(n_jobs=1)",
)
N_JOBS = {BATCHED: 1, BATCHED_PROCESSES: 2, PROCESSES: 2, ONE: 1}
OURS, TORCH_OPTIM = "import, one fit", "import, one fit, a torch.optim optimiser"


def question_of(epochs):
    """The name of a comparison."""
    return f"60 fits of {epochs} epochs"


def search(name, epochs, grid, n_folds):
    """Run one contestant here, warm; its seconds and its scores."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import GridSearchCV

    from skvae import VAE, BatchedGridSearchCV

    warnings.simplefilter("ignore")
    X = load_digits().data / 16.0
    vae = VAE(10, width=64, max_iter=epochs, device="cpu")
    cls = BatchedGridSearchCV if name.startswith("Batched") else GridSearchCV
    options = {"cv": n_folds, "refit": False, "n_jobs": N_JOBS[name]}
    small = vae.get_params() | {"max_iter": 1, "n_draws": 2}
    # joblib keeps the workers that this starts.
    cls(VAE(**small), {"beta": [1.0, 2.0]}, **options).fit(X[:300])
    tuned = cls(vae, grid, **options)
    started, processor = time.perf_counter(), time.process_time()
    tuned.fit(X)
    return {
        "seconds": time.perf_counter() - started,
        "processor_seconds": time.process_time() - processor,
        "scores": tuned.cv_results_["mean_test_score"].tolist(),
    }


# What a new worker process does, and prints the bound that it reached.
COLD_START = """
import json, warnings
import numpy as np
from skvae import VAE
warnings.simplefilter("ignore")
X = np.random.default_rng(0).standard_normal((1797, 64))
vae = VAE(10, width=64, max_iter=1, device="cpu", random_state=0).fit(X)
{}
print(json.dumps({{"bound": vae.best_bound_}}))
"""
OPTIMISER = "import torch; torch.optim.Adam(vae.module_.parameters())"


def in_fresh_process(*command):
    """A contestant: another process, with the seconds that it tells or takes."""

    def run():
        seconds, answer = seconds_of([sys.executable, *command])
        return {"seconds": seconds, **json.loads(answer.splitlines()[-1])}

    return run


def measure(configuration, options):
    question, epochs = configuration["question"], configuration.get("epochs")
    grid, n_folds = GRID, 5
    if options.tiny:
        epochs, grid, n_folds = 1, {"beta": [1.0, 2.0]}, 2
    if question == COLD:
        contestants = {
            TORCH_OPTIM: in_fresh_process("-c", COLD_START.format(OPTIMISER)),
        }
        if not options.tiny:
            contestants[OURS] = in_fresh_process("-c", COLD_START.format(""))
        yield from timed(COLD, contestants, options.repetitions, not options.tiny)
        return
    setting = epochs, grid, n_folds
    contestants = {
        name: in_fresh_process(__file__, "--here", json.dumps([name, *setting]))
        for name in N_JOBS
    }
    if options.tiny:
        contestants = {name: partial(search, name, *setting) for name in (BATCHED, ONE)}
    answers = []
    # No warm-up round: each contestant warms its own processes up.
    for repetition, name, seconds, answer in interleaved(
        contestants, options.repetitions, warm_up=False
    ):
        answers.append(answer["scores"])
        row = {"question": question, "contestant": name, "repetition": repetition}
        difference = np.abs(np.array(answer["scores"]) / np.array(answers[0]) - 1)
        # The processor seconds of other processes are not in it.
        processor = "" if N_JOBS[name] == 2 else answer["processor_seconds"]
        yield {
            **row,
            "seconds": seconds,
            "processor_seconds": processor,
            "log_likelihood": max(answer["scores"]),
            "difference": difference.max(),
        }


STUDY = Study(
    name="grid_search",
    title="A grid search of small networks",
    protocol=(
        "Digits, VAE of width 64, 10 latents, 4 betas, 3 seeds, 5 folds; "
        "scoring of every fit is included. Each search runs in a "
        "process of its own, warm. The log-likelihood is the best mean test score, and "
        "`difference` the largest of any mean score from the first contestant's, "
        "relative to it. The cold start is a whole process: import, one epoch of one "
        "fit, end."
    ),
    unit="a search or a process",
    measure=measure,
    columns={
        "processor_seconds": "{:.1f}",
        "log_likelihood": "{:.2f}",
        "bound": "{:.2f}",
        "difference": "{:.0e}",
    },
    configurations=lambda options: [
        *(
            {"question": question_of(n), "epochs": n}
            for n in options.epochs[: 1 if options.tiny else None]
        ),
        {"question": COLD},
    ],
    targets=(
        *(
            Target(question_of(n), *pair, at_least=least)
            for n in EPOCHS
            for *pair, least in (
                (BATCHED_PROCESSES, PROCESSES, 4.0),
                (BATCHED, ONE, 4.0),
                (PROCESSES, ONE, 1.8),
            )
        ),
        Target(COLD, OURS, TORCH_OPTIM, at_least=1.4),
    ),
    arguments=lambda parser: parser.add_argument(
        "--epochs", type=int, nargs="+", default=list(EPOCHS)
    ),
)

if __name__ == "__main__":
    if "--here" in sys.argv:
        print(json.dumps(search(*json.loads(sys.argv[-1]))))
    else:
        STUDY.main()
