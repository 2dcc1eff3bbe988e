"""What whoever watches the pool and the builds hears: the edges make metrics of it."""

from __future__ import annotations

from typing import Literal

Kind = Literal["fresh", "forked"]


class Observer:
    """Hears what the pool and the builds do, and does nothing; metrics are made by a subclass."""

    def predicted(self, queue_s: float, worker_s: float, model_s: float) -> None:
        """A request was answered; its seconds in the queue, at the worker and in the model."""

    def queued(self, delta: int) -> None:
        """So many more requests wait for a worker, or fewer."""

    def worker_started(self, kind: Kind) -> None:
        """A worker has loaded its model."""

    def worker_died(self, cause: str) -> None:
        """A worker ended that nobody had asked to: `exit 7`, `SIGSEGV`."""

    def evicted(self, why: str) -> None:
        """A worker or a template was stopped.

        Because it is `idle`, takes `memory`, is `recycled`, `changed` or `unloaded`.
        """

    def built(self, outcome: str, seconds: float) -> None:
        """A build is over: `built`, `cached`, or the reason of its failure."""
