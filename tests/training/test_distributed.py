"""Two processes with half a batch each give the result of one process with the whole batch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from afl.config import CONF
from afl.tracking import read_record


def command(output: Path, cache: str, *start: str) -> list[str]:
    # Batch norm is frozen, because statistics over half a batch would differ. Of eleven validation images, one
    # process evaluates six and the other five, and the last batch of each is smaller than the others. Without clipping, which would
    # remove a wrong scale of the gradients.
    return [
        *start, "-m", "scripts.train", "detector=retinanet", "loss=afl", "dataset=shapes_coco", "backbone=resnet18",
        "backbone.pretrained=false", "backbone.frozen_stages=0", "optimizer=sgd", "dataset.folder.num_train=24",
        "dataset.folder.num_val=11", "initial_weights=null", "logger=none", "trainer.progress=none",
        "trainer.batch_size=6", "trainer.eval_batch_size=4", "trainer.max_duration=3steps", "trainer.precision=fp32",
        "trainer.clip_norm=null", "trainer.device=cpu", f"paths.output={output}", f"paths.cache={cache}",
        "pyramid.channels=32", "pyramid.tower_depth=1", "pyramid.dense=[8,16,32]",
    ]  # fmt: skip


def test_two_gloo_processes_equal_one_with_the_whole_batch(tmp_path):
    one, two, cache = tmp_path / "one", tmp_path / "two", f"{tmp_path}/cache"
    subprocess.run(command(one, cache, sys.executable), cwd=CONF.parent, check=True)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    subprocess.run(command(two, cache, sys.executable, *torchrun), cwd=CONF.parent, check=True)
    (a,), (b,) = one.glob("*/checkpoints/last.pt"), two.glob("*/checkpoints/last.pt")
    assert a.parent.parent.name == b.parent.parent.name  # the same run key
    one, two = (torch.load(path, weights_only=True) for path in (a, b))
    # The weights hardly change in three steps; the momentum is a sum of the gradients. Rounding may switch a ReLU whose input is near
    # zero, which changes the gradients of a layer by a thousandth.
    momenta = [
        [state["momentum_buffer"] for state in saved["optimizer"]["state"].values()] for saved in (one, two)
    ]
    assert len(momenta[0]) == len(momenta[1]) > 0
    for number, (whole, halves) in enumerate(zip(*momenta, strict=True)):
        assert whole.norm() > 0 and (whole - halves).norm() < 1e-2 * whole.norm(), number
    first, second = one["model"], two["model"]
    for name in first:
        torch.testing.assert_close(
            first[name], second[name], rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )
    metrics = [read_record(path.parent.parent / "record.json").metrics for path in (a, b)]
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-3)
