"""Functions that take turns: each runs until it asks for something, and waits for the answer.

A function runs in a thread of its own, and only while the main thread waits for it. So the code of a model
can stop in the middle of a forward pass, where the main thread computes for several forward passes at once.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Semaphore, Thread
from typing import Any

import mlx.core as mx


class Ended(BaseException):
    """Nobody waits for the function any more. Not an Exception, so that no code of a model catches it."""


class Turn:
    """A function that takes turns. `advance` lets it run, and returns what it asks for.

    `done`: it has returned `result`. mlx's streams belong to one thread: the function can build a graph, but
    not compute it. What it builds is computed on `stream`. None: on the stream of the thread that makes the
    turn.
    """

    def __init__(self, work: Callable[[Turn], Any], stream: mx.Stream | None = None) -> None:
        self.done = False
        self.result: Any = None
        self._work = work
        self._error: Exception | None = None
        self._stream = mx.default_stream(mx.default_device()) if stream is None else stream
        self._asked: Any = None
        self._answer: Any = None
        self._ended = False
        self._begun = False
        self._go, self._stopped = Semaphore(0), Semaphore(0)
        self._thread = Thread(target=self._run, daemon=True)

    def advance(self, answer: Any = None) -> Any:
        """Goes on with the answer to what was asked. Returns what is asked next, None when there is nothing.

        Raises what the function raises.
        """
        self._answer = answer
        if self._begun:
            self._go.release()
        else:
            self._begun = True
            self._thread.start()
        self._stopped.acquire()
        if self.done:
            self._thread.join()
        if self._error is not None:
            raise self._error
        asked, self._asked = self._asked, None
        return asked

    def ask(self, what: Any) -> Any:
        """For the function: waits for an answer."""
        self._asked = what
        self._stopped.release()
        self._go.acquire()
        if self._ended:
            raise Ended
        answer, self._answer = self._answer, None
        return answer

    def end(self) -> None:
        """Ends a function that waits for an answer."""
        if self._begun and not self.done:
            self._ended = True
            self._go.release()
            self._thread.join()

    def _run(self) -> None:
        try:
            with mx.stream(self._stream):
                self.result = self._work(self)
        except Ended:
            pass
        except Exception as error:  # of a model's code, which may raise anything. `advance` raises it
            self._error = error
        finally:
            self.done = True
            self._stopped.release()
