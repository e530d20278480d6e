"""Two processes with half a batch each end with the weights and loss state of one process with the whole batch."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from omegaconf import DictConfig, OmegaConf
from torch import nn

from afl.training.build import build_detector
from afl.training.data import read_data, training_batches
from afl.training.distributed import World
from afl.training.gradient_dynamics import GradientDynamics
from afl.training.learner import Learner
from afl.training.loop import LoopOptions, Training, train
from datasets.batch import Batch
from tests.faults.short_run import DETECTORS, LOSSES, cell

pytestmark = pytest.mark.faults
STEPS, BATCH = 4, 4
# These losses rank the elements or boxes of a batch, and each process only ranks those of its images.
RANKED = {"ap_loss", "pisa"}
CELLS = [("retinanet", loss) for loss in LOSSES] + [
    (detector, "afl_per_class") for detector in DETECTORS if detector != "retinanet"
]


def step_batches(config: DictConfig) -> list[Batch]:
    """Whole batches: the second has all objects in the first half, the third in the second half, and the fourth has none."""
    data = read_data(config)
    stream = iter(training_batches(config, data, World(0, 1, torch.device("cpu")), start_step=0))
    batches = [next(stream) for _ in range(STEPS)]
    for number, empty in ((1, slice(BATCH // 2, None)), (2, slice(BATCH // 2)), (3, slice(None))):
        labels = batches[number].labels.clone()
        labels[empty] = -1
        batches[number] = replace(batches[number], labels=labels)
    return batches


def part(batch: Batch, rank: int) -> Batch:
    """The half of this process."""
    own = slice(rank * BATCH // 2, (rank + 1) * BATCH // 2)
    values = {item.name: getattr(batch, item.name) for item in fields(batch)}
    return Batch(**{name: None if value is None else value[own] for name, value in values.items()})


def trained(config: DictConfig, world: World, folder: Path) -> dict[str, torch.Tensor]:
    """Weights and buffers after four steps of the training loop."""
    torch.manual_seed(0)
    data = read_data(config)
    detector = build_detector(config, data.classes)
    for module in detector.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            # Statistics over half a batch would differ.
            module.eval()
            module.train = lambda mode=True, module=module: module
    batches = step_batches(config)
    train(
        Training(
            learner=Learner(detector, torch.optim.SGD(detector.parameters(), lr=0.02)),
            batches=batches if world.size == 1 else [part(batch, world.rank) for batch in batches],
            schedule=lambda step: 1.0,
            options=LoopOptions(
                total_steps=STEPS,
                batch_size=BATCH,
                accumulate=1,
                autocast=None,
                channels_last=False,
                clip_norm=5.0,
                log_every=0,
                checkpoint_every=0,
                evaluate_every=0,
            ),
            world=world,
            folder=folder,
            dynamics=GradientDynamics(detector.classification, data.statistics.groups),
        )
    )
    return detector.state_dict()


def work(rank: int, folder: str, configs: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    world = World(rank, 2, torch.device("cpu"), dist.new_group(backend="gloo"))
    states = [
        trained(OmegaConf.create(config), world, Path(folder) / str(n)) for n, config in enumerate(configs)
    ]
    torch.save(states, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory, cache) -> dict[tuple[str, str], tuple[dict, dict, dict]]:
    """The state of one process and of each of two processes, by detector and loss."""
    folder = tmp_path_factory.mktemp("ddp")
    configs = []
    for detector, loss in CELLS:
        config = cell(folder / "runs", cache, detector, loss)
        configs.append(OmegaConf.to_yaml(config, resolve=True))
    read_data(OmegaConf.create(configs[0]))
    mp.spawn(work, args=(str(folder), configs), nprocs=2)
    ranks = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
    alone = World(0, 1, torch.device("cpu"))
    return {
        name: (trained(OmegaConf.create(config), alone, folder / "alone"), ranks[0][n], ranks[1][n])
        for n, (name, config) in enumerate(zip(CELLS, configs, strict=True))
    }


@pytest.mark.parametrize(("detector", "loss"), CELLS)
def test_two_processes_equal_one(both, detector, loss, count):
    one, first, second = both[detector, loss]
    for name in one:
        assert torch.equal(first[name], second[name]), f"{name} differs between the two processes"
    differing = [
        name
        for name, value in one.items()
        if not torch.allclose(value.float(), first[name].float(), rtol=2e-4, atol=2e-6)
    ]
    if loss in RANKED:
        assert differing, "equal: it ranks over all processes now, and this list of exceptions is out of date"
        count("losses that rank within a process: its two processes equal each other, not one process")
        return
    assert not differing
    count("cells in which two processes equal one with the whole batch")
