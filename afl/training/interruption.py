"""Handles signals that ask a run to stop: the run finishes its step, saves a checkpoint, and ends.

SIGTERM, SIGUSR1 and SIGUSR2 are handled alike. If another handler was installed earlier, it decides what happens after the
checkpoint. For example, submitit's handler of its preemption signal (SIGUSR2, or the one that SUBMITIT_PREEMPT_SIGNAL names)
requeues the job and ends it, and its handler of SIGTERM returns, so that training continues until Slurm ends the job. Without
an earlier handler the process ends with the exit code ``INTERRUPTED``. In a plain Slurm job, SIGUSR1 and SIGUSR2 also requeue
the job.

The first SIGINT (Ctrl-C) is handled in the same way; a second one ends the process immediately. A process that ignores SIGINT
continues to ignore it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
from types import FrameType, TracebackType

import torch
import torch.distributed as dist

from afl.training.distributed import World
from datasets.errors import reason

INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: a temporary failure; the same command continues the run
# In increasing order of precedence when several signals are pending: the signals that requeue a job come last.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
# A terminal shows ^C, and perhaps a progress bar, on the current line.
STOPPING = b"\nstopping after this step; Ctrl-C again to stop now, without saving\n"
log = logging.getLogger(__name__)


class Interruption:
    """Records the signals of ``SIGNALS`` inside its ``with`` block, if that runs in the main thread.

    A run calls ``asked`` at a point where its state is complete, saves the state, and then calls ``obey``.
    """

    def __init__(self) -> None:
        # A signal may arrive in the middle of ``asked``, after this process has shared its signals with the others. It stays
        # pending until the next call of ``asked``.
        self._pending: set[int] = set()
        self._received: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Interruption:
        # Python allows only the main thread to handle signals.
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if number != signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            # None means that the handler was not installed from Python, so Python cannot restore it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if number in self._pending or number == self._received:
                raise KeyboardInterrupt
            # Neither logging nor a Python stream is safe here: the signal may have interrupted one of their calls.
            with contextlib.suppress(OSError):
                os.write(2, STOPPING)
        self._pending.add(number)

    def asked(self, world: World) -> bool:
        """Whether any process of the run has received a signal; all processes get the same answer.

        With several processes this is a collective call: all of them must make it at the same place.
        """
        strongest = self._strongest()
        if world.size > 1:
            shared = torch.tensor(strongest)
            dist.all_reduce(shared, dist.ReduceOp.MAX, group=world.control)
            strongest = int(shared)
        if strongest < 0:
            return False
        self._received = SIGNALS[strongest]
        # All processes know this signal now; other signals of this process stay pending.
        self._pending.discard(self._received)
        return True

    def _strongest(self) -> int:
        """Index in ``SIGNALS`` of the received signal with the highest precedence; -1 if none was received."""
        received = {*self._pending, self._received} - {None}
        return max(map(SIGNALS.index, received), default=-1)

    def leave_if_asked(self, world: World) -> None:
        """Obey a signal at a point where nothing needs to be saved; a collective call, like ``asked``."""
        if self.asked(world):
            self.obey("the same command continues from the last checkpoint")

    def obey(self, what: str) -> None:
        """End the process, unless an earlier handler of the signal decides otherwise.

        Args:
            what: end of the logged message: the state that was saved, and how to continue.

        Raises:
            SystemExit: with the exit code ``INTERRUPTED``, or as the earlier handler raises it.
        """
        strongest = self._strongest()
        if strongest < 0:
            return
        number, self._received = SIGNALS[strongest], None
        self._pending.discard(number)
        log.warning("%s: %s", number.name, what)
        earlier = self._previous.get(number)
        if callable(earlier):
            earlier(number, None)
            return
        if number in (signal.SIGUSR1, signal.SIGUSR2) and int(os.environ.get("RANK", 0)) == 0:
            _requeue()
        raise SystemExit(INTERRUPTED)


def _requeue() -> None:
    """Requeue the Slurm job of this process, if it has one."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True, timeout=60)
        log.warning("Slurm job %s is back in the queue", job)
    except (OSError, subprocess.SubprocessError) as error:
        why = (getattr(error, "stderr", None) or reason(error)).strip()
        log.warning("Slurm job %s could not be requeued (%s); submit the same command again", job, why)
