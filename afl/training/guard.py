"""Stops the run at a loss that is not finite, and saves everything needed to find the cause.

On a CPU, a value is checked immediately. On a GPU, an immediate check would make the host wait for the device in every step.
The result is therefore copied to the host while the next steps are already queued, and the device protects the weights:
``tripped`` becomes 1 at the first value that is not finite and stays 1, and the fused optimiser reads it and skips its step.
The host receives the result at most two steps later and stops. The run saves, evaluates and logs only after all results have
arrived. The saved weights are therefore those that produced the value.
"""

from __future__ import annotations

import io
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from afl.tracking import write_bytes
from datasets.errors import reason
from detectors.contract import Targets

# Number of results that may be pending before the host waits for the oldest.
_UNDER_WAY = 4


class NonFiniteLoss(RuntimeError):
    """Training stopped before a non-finite gradient reached the weights."""


@dataclass(frozen=True)
class Suspects:
    """The data that is saved when a value is not finite.

    Attributes:
        losses: the terms by name, detached, because their graph would keep the activations in memory.
        step: optimiser step, counted from 0.
        images: (B, 3, H, W), the input of the detector.
        image_ids: (B,) ids of the data set.
        targets: of the batch.
    """

    losses: dict[str, Tensor]
    step: int
    images: Tensor
    image_ids: Tensor
    targets: Targets


class FiniteGuard:
    """Watches scalars that must be finite.

    Args:
        detector: its weights are saved with the batch.
        optimizer: a fused optimiser can skip its step on the device; with any other, values are checked immediately.
        device: of the values.
        folder: for ``non_finite_step<N>.pt``; each of several processes writes a separate file.
        late: defer the checks; None defers them on a GPU if the optimiser can skip a step.
    """

    def __init__(
        self,
        detector: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        folder: Path,
        *,
        late: bool | None = None,
    ) -> None:
        can_skip = all(group.get("fused") for group in optimizer.param_groups)
        self._late = device.type != "cpu" and can_skip if late is None else late
        self._detector, self._folder = detector, folder
        self._under_way: deque[tuple[Tensor, Any, str, Suspects]] = deque()
        self.tripped = torch.zeros((), device=device)
        if self._late:
            # GradScaler uses this attribute: a fused optimiser changes nothing while it is 1.
            optimizer.found_inf = self.tripped  # type: ignore[attr-defined]

    def check(self, value: Tensor, what: str, suspects: Suspects) -> None:
        """Check that a scalar is finite: immediately on a CPU, deferred on a GPU.

        Args:
            what: name of the value in messages, such as "loss" or "gradient norm".

        Raises:
            NonFiniteLoss: this value, or one of an earlier step, is not finite; names step, image ids, terms and file.
        """
        finite = torch.isfinite(value.detach())
        if not self._late:
            if not bool(finite):
                self._stop(what, suspects)
            return
        torch.maximum(self.tripped, (~finite).to(self.tripped.dtype), out=self.tripped)
        self._under_way.append((*_fetched(finite), what, suspects))
        while len(self._under_way) > _UNDER_WAY:
            self._check_oldest()

    def settle(self) -> None:
        """Wait for all pending results; call this before anything is saved, evaluated or logged.

        Raises:
            NonFiniteLoss: see ``check``.
        """
        while self._under_way:
            self._check_oldest()

    def _check_oldest(self) -> None:
        answer, arrival, what, suspects = self._under_way.popleft()
        if arrival is not None:
            arrival.synchronize()
        if not bool(answer):
            self._stop(what, suspects)

    def _stop(self, what: str, suspects: Suspects) -> None:
        # All processes stop at the step of a bad gradient, and only one of them has the batch that produced it.
        rank = f"_process{dist.get_rank()}" if dist.is_available() and dist.is_initialized() else ""
        path = self._folder / f"non_finite_step{suspects.step}{rank}.pt"
        saved = {
            "step": suspects.step,
            "images": suspects.images,
            "image_ids": suspects.image_ids,
            "targets": asdict(suspects.targets),
            "model": self._detector.state_dict(),
            "losses": suspects.losses,
        }
        content = io.BytesIO()
        torch.save(saved, content)
        try:
            write_bytes(path, content.getvalue())
            where = (
                f"are in {path}, and `python -m scripts.replay file={path}` shows which value is the first"
            )
        except OSError as error:  # report the loss in any case
            where = f"could not be saved: {reason(error)}"
        terms = ", ".join(f"{name} {float(term):g}" for name, term in suspects.losses.items())
        raise NonFiniteLoss(
            f"the {what} is not finite at step {suspects.step} ({terms}) on images {suspects.image_ids.tolist()}; "
            f"the batch and the weights {where}. A lower learning rate, a longer warm-up or "
            "trainer.clip_norm usually help; `prepare_data check` looks for broken boxes."
        )


def _fetched(finite: Tensor) -> tuple[Tensor, Any]:
    """Start copying a flag to the host; returns the copy and the event of its arrival, None if the flag is on the host."""
    if not finite.is_cuda:
        return finite, None
    answer = torch.empty((), dtype=torch.bool, pin_memory=True)
    answer.copy_(finite, non_blocking=True)
    arrival = torch.cuda.Event()
    arrival.record()
    return answer, arrival
