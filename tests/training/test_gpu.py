"""Which GPU a run takes, with a made-up number of GPUs and processes that really hold their locks."""

from __future__ import annotations

import multiprocessing
import os

import pytest
import torch

from afl.training.distributed import join_world
from afl.training.gpu import own_gpu


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Three GPUs that this process has not used."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    return tmp_path / "gpus"


def hold(folder, taken, end):
    taken.send(own_gpu(folder))
    end.recv()


def test_each_process_takes_a_free_gpu_and_leaves_it_with_its_end(machine):
    fork = multiprocessing.get_context("fork")
    found, processes, ends = [], [], []
    for _ in range(4):
        (ours, theirs), (wait, end) = fork.Pipe(), fork.Pipe()
        process = fork.Process(target=hold, args=(machine, theirs, wait))
        process.start()
        found.append(ours.recv())
        processes.append(process)
        ends.append(end)
    assert found[:3] == [0, 1, 2] and found[3] == processes[3].pid % 3  # the fourth one shares
    ends[1].send(None)
    processes[1].join()
    assert own_gpu(machine) == 1
    for end in (ends[0], ends[2], ends[3]):
        end.send(None)


def test_names_of_visible_gpus_decide_and_not_their_order(machine, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")
    assert own_gpu(machine) == 0
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,5")
    assert own_gpu(machine) == 0  # GPU 6
    assert own_gpu(machine) == os.getpid() % 2


def test_a_process_keeps_its_gpu_and_a_single_one_needs_no_lock(machine, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    assert own_gpu(machine) == 2
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert own_gpu(machine) == 0 and not machine.exists()


@pytest.mark.parametrize(
    ("device", "variables", "expected"),
    [
        ("auto", {}, 1),
        ("cuda", {}, 1),
        ("cuda:2", {}, 2),
        ("auto", {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, 0),
    ],
)
def test_a_named_gpu_and_that_of_torchrun_stay(monkeypatch, device, variables, expected):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr("afl.training.distributed.own_gpu", lambda: 1)
    for name in ("is_initialized", "init_process_group", "new_group"):
        monkeypatch.setattr(f"torch.distributed.{name}", lambda *_, **__: None)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    world = join_world(device)
    assert world.device == chosen[0] == torch.device("cuda", expected)
