"""Where the time of a training step goes, on real models in a real fit.

    python benchmarks/speed/step.py

Parts of the library are timed where they stand: their functions are wrapped by a clock
while `fit` runs, and each part is charged the time between its beginning and its end
less that of the parts within. What no part claims is charged to what calls them. Steps
that are replayed as a list of operations charge each operation to the part that it was
recorded in.
"""

import time
from collections import Counter, defaultdict
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import _peers
import train as training
from _measure import Study

from skvae import VAE, _batches, _replay, _training

SIZES = {
    "784 features, width 512, batch 128": _peers.Sizes(),
    "64 features, width 64, batch 64": _peers.Sizes(64, 64, 8, 64),
}
STEPS, EPOCHS = 100, 3
CUT, NOISE, BOOKKEEPING = "cutting batches", "noise", "bookkeeping of the epoch"
BETWEEN, OUTSIDE = "between epochs: snapshots, callbacks", "set-up and summaries"
REPLAY = "replaying: inputs, the list, its recording"
STEP, BACKWARD = "posterior, loss", "backward"
# Label, and the path to the function from the loop's object.
WITHIN = (
    ("encoder, forward", "model.encoder.forward"),
    (STEP, "inference.step"),
    ("sampling, terms", "objective.terms"),
    ("decoder, forward", "model.decoder.forward"),
    ("likelihood", "model.likelihood.log_prob"),
    ("KL", "model.prior.kl"),
    (BACKWARD, "optimizer.differentiate"),
    ("Adam", "optimizer.step"),
    (REPLAY, "step.take"),
    (BOOKKEEPING, "run_epoch"),
    (BETWEEN, "advance"),
)
PARTS = [CUT, NOISE, *(label for label, _ in WITHIN), OUTSIDE]
ALL, UNTIMED = "all of the epochs", "all of the epochs, without the clock"


class Clock:
    """Seconds by part; those of a part within another are not the other's."""

    def __init__(self):
        self.seconds, self.operations = defaultdict(float), Counter()
        self.stack, self.since = [], time.perf_counter()

    def enter(self, label):
        self.charge()
        self.stack.append(label)

    def leave(self):
        self.charge()
        self.stack.pop()

    def charge(self):
        now = time.perf_counter()
        if self.stack:
            self.seconds[self.stack[-1]] += now - self.since
        self.since = now

    def wrapped(self, label, function):
        def timed(*arguments, **options):
            # Summaries call the same parts.
            if label not in (OUTSIDE, BETWEEN) and BETWEEN not in self.stack:
                return function(*arguments, **options)
            self.enter(label)
            try:
                return function(*arguments, **options)
            finally:
                self.leave()

        return timed

    def drawn(self, label, generator):
        """The same for a generator, whose time is that of its `next`."""

        def timed(*arguments, **options):
            items = generator(*arguments, **options)
            following = self.wrapped(label, lambda: next(items, None))
            while (item := following()) is not None:
                yield item

        return timed


class Labelled(list):
    """Recorded operations, and the part in which each was recorded."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock
        clock.labels = {}

    def append(self, operation):
        super().append(operation)
        _, arguments, *_ = operation
        self.clock.labels[id(arguments)] = self.clock.stack[-1]


@contextmanager
def attached(clock):
    """The parts of every loop that starts within the context are on the clock."""
    with ExitStack() as stack:

        def put(owner, name, wrapper):
            stack.enter_context(patch.object(owner, name, wrapper))

        def start(loop, *arguments, **options):
            initialise(loop, *arguments, **options)
            for label, path in WITHIN:
                *owners, name = path.split(".")
                owner = loop
                for step in owners:
                    owner = getattr(owner, step, None)
                if hasattr(owner, name):
                    put(owner, name, clock.wrapped(label, getattr(owner, name)))

        def listen(recorder):
            record(recorder)
            recorder.operations = Labelled(clock)

        def labelled_call(function, arguments, *rest):
            # Copies of gradients may have been cut short, and are new.
            label = clock.labels.get(id(arguments), BACKWARD)
            call = replayable_call(function, arguments, *rest)
            if call is None:
                return None
            clock.operations[label] += 1
            return clock.wrapped(label, call[0]), *call[1:]

        initialise = _training.Training.__init__
        put(_training.Training, "__init__", start)
        record, replayable_call = _replay.Recorder.__init__, _replay.replayable_call
        put(_replay.Recorder, "__init__", listen)
        put(_replay, "replayable_call", labelled_call)
        put(_training, "batches", clock.drawn(CUT, _training.batches))
        drawing = clock.wrapped(NOISE, _batches.standard_normal)
        put(_batches, "standard_normal", drawing)
        yield


def measure(configuration, options):
    question = configuration["question"]
    sizes, n_steps = SIZES[question], STEPS
    if options.tiny:
        sizes, n_steps = _peers.Sizes(64, 16, 4, 32), 34
    n_rows = n_steps * sizes.batch_size
    data = _peers.images(n_rows + 500, sizes.n_features)
    X, held_out = data[:n_rows], data[n_rows:]

    def fit():
        vae = VAE(
            sizes.n_latents,
            width=sizes.width,
            likelihood="bernoulli",
            batch_size=sizes.batch_size,
            max_iter=EPOCHS,
            device="cpu",
            random_state=0,
        )
        return vae.fit(X)

    fit()
    steps = EPOCHS * n_steps
    bare = training.products(sizes, steps)
    for repetition in range(options.repetitions):
        row = {"question": question, "repetition": repetition}

        def result(name, seconds, row=row, **more):
            return {**row, "contestant": name, "seconds": seconds / steps, **more}

        clock = Clock()
        with attached(clock):
            vae = clock.wrapped(OUTSIDE, fit)()
        inside = sum(v for k, v in clock.seconds.items() if k not in (OUTSIDE, BETWEEN))
        for name in PARTS:
            if name in clock.seconds:
                share = (
                    "" if name in (OUTSIDE, BETWEEN) else clock.seconds[name] / inside
                )
                more = {"share": share, "operations": clock.operations[name] or ""}
                yield result(name, clock.seconds[name], **more)
        bound = _peers.judged(vae, held_out)
        yield result(ALL, sum(vae.history_["seconds"]), share=1.0, bound=bound)
        plain = fit()
        yield result(
            UNTIMED,
            sum(plain.history_["seconds"]),
            bound=_peers.judged(plain, held_out),
        )
        yield result(training.PRODUCTS, bare()["seconds"])


STUDY = Study(
    name="step",
    title="Where a step's time goes",
    protocol=(
        f"A Bernoulli VAE, {STEPS} steps an epoch, {EPOCHS} epochs; seconds per step. "
        "Parts are timed inside `fit` by wrapping their functions, and the time of a "
        "part does not include that of the parts within it. Where a step is replayed, "
        "the operations on its list are charged to the parts that they were recorded "
        "in, and their number is given. Shares are of the epochs' time; the two rows "
        "without one lie outside the epochs. The last rows: the epochs with and "
        "without the clock, whose weight the two tell, and the step's matrix products "
        "alone."
    ),
    unit="a step's part",
    measure=measure,
    columns={"share": "{:.0%}", "operations": "{:.0f}", "bound": "{:.1f}"},
    configurations=lambda options: [{"question": question} for question in SIZES],
)

if __name__ == "__main__":
    STUDY.main()
