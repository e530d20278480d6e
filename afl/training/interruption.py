"""Signals that ask a run to make room: the step is finished, a checkpoint is saved, and the process leaves.

SIGTERM, SIGUSR1 and SIGUSR2 are answered alike.  Whoever had the signal before has the last word: submitit's handler of its
preemption signal (SIGUSR2, or what SUBMITIT_PREEMPT_SIGNAL names) puts the job back into the queue and ends it, and its
handler of SIGTERM goes on until Slurm ends the job.  Where nobody else had it, the process ends with the code
``INTERRUPTED``; in a plain Slurm job SIGUSR1 and SIGUSR2 put the job back into the queue first.

SIGINT (Ctrl-C) is answered in the same way the first time, and ends the process at once the second time; where it was
ignored it stays so.
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

INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, the same command goes on from here
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
STOPPING = b"stopping after this step; Ctrl-C again to stop at once, without saving\n"
log = logging.getLogger(__name__)


class Interruption:
    """Notes the signals of ``SIGNALS`` while it is entered; outside of that, and beside the main thread, there are none.

    A run asks ``asked`` at places where everything can be saved, saves, and calls ``obey``.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Interruption:
        # Only the main thread may handle signals; elsewhere they stay with whoever has them.
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if number != signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            # None: it was not Python's, and Python cannot put it back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._received == number:
                raise KeyboardInterrupt
            # Not through the logging or the stream that this signal may have come into the middle of.
            with contextlib.suppress(OSError):
                os.write(2, STOPPING)
        self._received = number

    def asked(self, world: World) -> bool:
        """Whether any process of the run has received a signal; all of them get the same answer.

        A collective where there is more than one process: all must ask at the same place.
        """
        if world.size == 1:
            return self._received is not None
        received = torch.tensor(self._received or 0)
        dist.all_reduce(received, dist.ReduceOp.MAX, group=world.control)
        self._received = int(received) or None
        return self._received is not None

    def obey(self, what: str) -> None:
        """Leave, unless whoever handled the signal before decides otherwise.

        Args:
            what: what has been saved, for the message.

        Raises:
            SystemExit: with the code ``INTERRUPTED``, or what the earlier handler raises.
        """
        number, self._received = self._received, None
        if number is None:
            return
        name = signal.Signals(number).name
        log.warning("%s: %s", name, what)
        earlier = self._previous.get(number)
        if callable(earlier):
            earlier(number, None)
            return
        if number in (signal.SIGUSR1, signal.SIGUSR2) and int(os.environ.get("RANK", 0)) == 0:
            _requeue()
        raise SystemExit(INTERRUPTED)


def _requeue() -> None:
    """Put this Slurm job, if it is one, back into the queue."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True, timeout=60)
        log.warning("Slurm job %s is back in the queue", job)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip()
        log.warning("Slurm job %s could not be requeued (%s); submit the same command again", job, said)
