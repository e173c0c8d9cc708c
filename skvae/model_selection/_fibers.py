"""Functions that pause: each has a thread of its own, and one alone runs at a time.

scikit-learn fits and scores a candidate in one call. To train many candidates at once,
that call has to stop where training begins and to go on where it ended, with all of
its frames in place; a thread that waits is the plain way to keep them.
"""

from __future__ import annotations

import threading
import time
import warnings
from contextvars import copy_context

# What `warnings.catch_warnings` puts away and brings back.
WARNINGS_STATE = ("filters", "showwarning", "_showwarnmsg_impl")


class Cancelled(BaseException):
    """Raised where a function paused that is not to go on."""


class Fiber:
    """A function that runs from one pause to the next.

    Parameters
    ----------
    function : callable
        Takes the fiber, whose :meth:`ask` it may call to pause.
    """

    def __init__(self, function):
        self.function = function
        self.asked = self.answer = self.result = self.error = None
        self.done = False
        self.paused_seconds = 0.0
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread, self._running = None, False

    def resume(self, answer=None):
        """Run up to the next pause or to the end; an exception as answer is raised."""
        self.answer, self.asked = answer, None
        self._running = True
        # Whatever the function changes stays with it when it pauses.
        with warnings.catch_warnings():
            if self._thread is None:
                run = copy_context().run
                self._thread = threading.Thread(
                    target=run, args=(self._run,), daemon=True
                )
                self._thread.start()
            else:
                self._go.release()
            self._back.acquire()
        self._running = False
        if self.done:
            self._thread.join()

    def ask(self, question):
        """Pause, from within; returns what :meth:`resume` is given."""
        state = {name: getattr(warnings, name) for name in WARNINGS_STATE}
        self.asked = question
        started = time.perf_counter()
        self._back.release()
        self._go.acquire()
        self.paused_seconds += time.perf_counter() - started
        for name, value in state.items():
            setattr(warnings, name, value)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    def close(self):
        """End the function at its pause, with its `finally` blocks."""
        if self._running:
            self._back.acquire()
            self._running = False
        while self._thread is not None and not self.done:
            self.resume(Cancelled())

    def _run(self):
        try:
            self.result = self.function(self)
        except BaseException as error:
            # Raised again by whoever takes the result.
            self.error = error
        finally:
            self.done = True
            self._back.release()
