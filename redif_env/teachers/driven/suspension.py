"""A call that can be suspended in the middle, whatever libraries lie between: it runs in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any


class Cancelled(BaseException):
    """Raised inside a suspended call to unwind it. No ``Exception``, so that nothing in between swallows it."""


class SuspendedCall:
    """``body(suspend)``, in strict alternation with the caller: one of the two runs at any time.

    A thread, because gradient mode, autocast and the like belong to a thread: what the body sets never reaches the
    caller. The thread ends with the call, and with :meth:`close`.

    Args:
        body: is given ``suspend``: ``suspend(value)`` hands a value to the caller and returns what :meth:`resume` is
            called with next.
    """

    def __init__(self, body: Callable[[Callable[[Any], Any]], Any]) -> None:
        self._inbox: SimpleQueue[Any] = SimpleQueue()
        self._outbox: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(body,), name="driven pipeline", daemon=True)
        self.finished = False

    def resume(self, value: Any = None) -> tuple[bool, Any]:
        """Run up to the next suspension: ``(False, what was handed out)``, or ``(True, what the body returned)``.

        Raises:
            RuntimeError: if the call is over.
            BaseException: whatever the body raised, with its own traceback.
        """
        if self.finished:
            raise RuntimeError("the suspended call is over: open another")
        try:
            if self._thread.ident is None:
                self._thread.start()
            else:
                self._inbox.put(value)
            kind, content = self._next()
        except BaseException:  # an interrupt, which may come while the thread starts: the body ends when it suspends
            self.finished = True
            self._inbox.put(Cancelled())
            raise
        self.finished = kind != "suspended"
        if kind == "raised":
            raise content
        return self.finished, content

    def _next(self) -> tuple[str, Any]:
        """What the body hands out next."""
        while True:
            # A signal that comes just before the wait does not wake it: wait anew each second, so that it is handled.
            with suppress(Empty):
                return self._outbox.get(timeout=1)

    def close(self) -> None:
        """Unwind the body, if it is suspended."""
        if self.finished:
            return
        self.finished = True
        if self._thread.ident is not None:
            self._inbox.put(Cancelled())
            self._thread.join()

    def _suspend(self, value: Any) -> Any:
        self._outbox.put(("suspended", value))
        del value
        answer = self._inbox.get()
        if isinstance(answer, Cancelled):
            raise answer
        return answer

    def _run(self, body: Callable[[Callable[[Any], Any]], Any]) -> None:
        try:
            self._outbox.put(("returned", body(self._suspend)))
        except Cancelled:
            return
        except BaseException as error:
            self._outbox.put(("raised", error))
