"""A joblib backend whose tasks wait for each other where networks are trained."""

from __future__ import annotations

import math
import time
from collections import defaultdict, deque

import torch
from joblib import Parallel, delayed
from joblib.parallel import ParallelBackendBase
from threadpoolctl import ThreadpoolController

from skvae._memory import give_back
from skvae._training import train
from skvae.estimators._stacking import TRAINER, Request, key, train_together
from skvae.model_selection._fibers import Fiber

# Numbers in the parameters of a batch: their gradients and moments beside them, they
# should stay in the cache from one step to the next.
BATCH_PARAMETERS = 600_000
MIN_REPLICAS, MAX_REPLICAS = 8, 32
# Bytes of training data that may wait for a batch to fill.
WAITING_BYTES = 1 << 30


def replicas_for(request: Request) -> int:
    """How many replicas a batch of such fits should have."""
    size = sum(p.numel() for p in request.model.parameters()) // request.n_replicas
    return max(MIN_REPLICAS, min(MAX_REPLICAS, BATCH_PARAMETERS // max(size, 1)))


class Task:
    """One call of scikit-learn's, and what is known about it."""

    def __init__(self, number, function, callback, threadpools):
        self.number, self.function, self.callback = number, function, callback
        self.fiber = Fiber(lambda fiber: self._run(function, fiber, threadpools))
        self.own_seconds = 0.0
        self.trained = self.alone = self.failed = False
        self.result = None

    @property
    def done(self):
        return self.result is not None or self.fiber.done

    @staticmethod
    def _run(function, fiber, threadpools):
        def ask(model, data, **options):
            return fiber.ask(Request(model, data, **options))

        TRAINER.set(ask)
        # torch gives a thread its number of OpenMP threads when first asked.
        torch.get_num_threads()
        # OpenMP keeps a team for every thread that ever computed in parallel. With
        # more of them than processors, all teams wait asleep, that of training too.
        with threadpools.limit(limits=1, user_api="openmp"):
            return function()

    def outcome(self):
        """The result, with the task's share of the training time as its own."""
        if self.fiber.error is not None:
            raise self.fiber.error
        if self.result is None:
            self.result = self.fiber.result
            for fit in self.result:
                fit["fit_time"] += self.own_seconds - self.fiber.paused_seconds
            self.failed = any(fit.get("fit_error") for fit in self.result)
        return self.result


def run_together(functions, max_replicas):
    """In a worker process: the outcomes, what became of the tasks, the batches."""
    backend = BatchingBackend(max_replicas)
    tasks = [backend.submit(function) for function in functions]
    try:
        outcomes = [backend.retrieve_result(task) for task in tasks]
    finally:
        backend.terminate()
    fates = [(task.trained, task.alone, task.failed) for task in tasks]
    give_back()
    return outcomes, fates, backend.batches


class BatchingBackend(ParallelBackendBase):
    """Runs tasks up to their training, trains those of equal shape together.

    Parameters
    ----------
    max_replicas : int or None
        Replicas at which a batch is trained; None decides by the size of the networks.
    n_jobs : int, default=1
        Processes among which the tasks are divided, by the joblib backend that is
        active when the first result is asked for.

    Attributes
    ----------
    batches : list of dict
        "tasks", their numbers; "n_replicas"; "seconds".
    """

    uses_threads = supports_sharedmem = True
    # Every task is on its way at once, whatever n_jobs says.
    default_n_jobs = 1 << 20

    def __init__(self, max_replicas=None, n_jobs=1):
        super().__init__(nesting_level=0)
        self.max_replicas, self.n_processes = max_replicas, n_jobs
        self.tasks, self.batches = [], []
        self.ready, self.waiting = deque(), defaultdict(list)
        # Looks through all loaded libraries, which takes a while.
        self.threadpools = ThreadpoolController()

    # -------------------------------------------------------- what joblib calls

    def effective_n_jobs(self, n_jobs):
        """All tasks run at once, as far as joblib is concerned."""
        return self.default_n_jobs

    def submit(self, func, callback=None):
        """Take a task on; nothing runs until a result is asked for."""
        task = Task(len(self.tasks), func, callback, self.threadpools)
        self.tasks.append(task)
        self.ready.append(task)
        return task

    def retrieve_result(self, out, timeout=None):
        """Work until this task is done."""
        if self.n_processes > 1 and not out.done:
            self._divide()
        while not out.done:
            if self.ready and not self._full():
                self._advance(self.ready.popleft())
            else:
                self._train(max(self.waiting, key=lambda k: len(self.waiting[k])))
        return out.outcome()

    def abort_everything(self, ensure_ready=True):
        """Give up what waits."""
        self.terminate()

    def terminate(self):
        """End what waits, in order."""
        self.ready.clear()
        self.waiting.clear()
        for task in self.tasks:
            task.fiber.close()

    # ---------------------------------------------------------------- the work

    def _divide(self):
        """Have the tasks done by several processes, each with batches of its own."""
        tasks = list(self.ready)
        self.ready.clear()
        # Neighbours differ in their fold and then in a parameter: dealt out in turn,
        # every process gets some of each size.
        hands = [tasks[i :: self.n_processes] for i in range(self.n_processes)]
        hands = [hand for hand in hands if hand]
        answers = Parallel(n_jobs=self.n_processes)(
            delayed(run_together)([task.function for task in hand], self.max_replicas)
            for hand in hands
        )
        for hand, (outcomes, fates, batches) in zip(hands, answers, strict=True):
            for task, outcome, fate in zip(hand, outcomes, fates, strict=True):
                task.result = outcome
                task.trained, task.alone, task.failed = fate
                if task.callback is not None:
                    task.callback(None)
            self.batches += [
                {**batch, "tasks": [hand[number].number for number in batch["tasks"]]}
                for batch in batches
            ]

    def _full(self):
        """Whether the waiting tasks hold much memory."""
        requests = [t.fiber.asked for group in self.waiting.values() for t in group]
        sizes = (r.data.x.numel() * r.data.x.element_size() for r in requests)
        return sum(sizes) > WAITING_BYTES

    def _advance(self, task, answer=None):
        task.fiber.resume(answer)
        if task.fiber.done:
            if task.callback is not None:
                task.callback(None)
            return
        request = task.fiber.asked
        shape = key(request)
        if shape is None:
            task.alone = True
            self._train_alone(task)
            return
        group = self.waiting[shape]
        group.append(task)
        limit = self.max_replicas or replicas_for(request)
        waiting = sum(t.fiber.asked.n_replicas for t in group)
        # Batches of like size, as far as can be told, rather than a small last one.
        expected = waiting + len(self.ready) * request.n_replicas
        if waiting >= math.ceil(expected / math.ceil(expected / limit)):
            self._train(shape)

    def _train(self, shape):
        group = self.waiting.pop(shape)
        if len(group) == 1:
            self._train_alone(group[0])
            return
        requests = [task.fiber.asked for task in group]
        started = time.perf_counter()
        try:
            answers = train_together(requests)
        except Exception as error:
            answers = [error] * len(group)
        self._answer(group, answers, time.perf_counter() - started)

    def _train_alone(self, task):
        request = task.fiber.asked
        options = request._asdict()
        started = time.perf_counter()
        try:
            answer = train(options.pop("model"), options.pop("data"), **options)
        except Exception as error:
            answer = error
        self._answer([task], [answer], time.perf_counter() - started)

    def _answer(self, group, answers, seconds):
        sizes = [task.fiber.asked.n_replicas for task in group]
        numbers = [task.number for task in group]
        self.batches.append(
            {"tasks": numbers, "n_replicas": sum(sizes), "seconds": seconds}
        )
        traces = [getattr(answer, "__traceback__", None) for answer in answers]
        for task, answer, size, trace in zip(
            group, answers, sizes, traces, strict=True
        ):
            if trace is not None:
                # The last task to raise this error has added its frames.
                answer = answer.with_traceback(trace)
            task.trained = True
            task.own_seconds += seconds * size / sum(sizes)
            self._advance(task, answer)
