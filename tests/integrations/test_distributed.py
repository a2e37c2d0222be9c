"""Distributed training on two processes: patterns stay equal, or all ranks raise."""

from __future__ import annotations

import copy
import itertools
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from dst_runs import batches, in_blocks, scheduled, snapshot, sparse_layers, train_step, two_layers
from tiny import same
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sparseconv import DSTScheduler, KernelCSR, SparseConv1d

STEPS = 8
SETTINGS = {"update_every": 3, "end_step": 40, "seed": 5}

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch without gloo"
)


WORLD = 2
TIMEOUT = 60  # seconds; a deadlock ends in a failure


def on_ranks(function: Callable[..., Any], folder: Path, *args: Any) -> list[Any]:
    """Call ``function(rank, *args)`` on each rank of a gloo group; what each returns."""
    # A new folder: a second group must not meet the first one's store.
    folder = folder / f"ranks{len(list(folder.iterdir()))}"
    folder.mkdir()
    # The children of a fork cannot train where a torch with CUDA has differentiated before.
    context = mp.get_context("fork" if torch.version.cuda is None else "forkserver")
    ranks = [
        context.Process(target=_rank, args=(rank, folder, function, args)) for rank in range(WORLD)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(TIMEOUT)
    hung = [rank for rank, process in enumerate(ranks) if process.is_alive()]
    for process in ranks:
        process.kill()
        process.join()
    texts = [path.read_text() for path in sorted(folder.glob("*.error"))]
    assert not hung, f"ranks {hung} hang; {texts}"
    assert not texts, "\n".join(texts)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]


def _rank(rank: int, folder: Path, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)  # the parent's OpenMP threads did not come along
    try:
        store = f"file://{folder / 'store'}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD)
        torch.save(function(rank, *args), folder / f"{rank}.pt")
        dist.barrier()  # who leaves first would break the others' connections
        dist.destroy_process_group()
    except BaseException:
        (folder / f"{rank}.error").write_text(f"rank {rank}: {traceback.format_exc()}")


def data(rank: int) -> list[Tensor]:
    return list(itertools.islice(batches(torch.float64, seed=rank), STEPS))


def run(model: nn.Module, network: nn.Module, grow: str, data: list[Tensor]) -> Any:
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    dst = DSTScheduler(network, optimizer, **SETTINGS, grow=grow)
    for x in data:
        train_step(model, optimizer, x)
        dst.step()
    layers = sparse_layers(network)
    moments = [optimizer.state[p]["exp_avg"] for p in network.parameters()]
    tensors = [*(x.values.grad for x in layers), *(p.detach() for p in network.parameters())]
    patterns = [layer.pattern.positions() for layer in layers]
    return {"patterns": patterns, "tensors": tensors + moments, "schedule": dst.state_dict()}


def with_ddp(rank: int, make: Callable[..., nn.Sequential]) -> Any:
    found = {}
    for grow in ("random", "gradient", "static"):
        network = make(torch.float64)
        model = DistributedDataParallel(network, gradient_as_bucket_view=grow == "gradient")
        found[grow] = run(model, network, grow, data(rank))
    return found


@pytest.mark.tool("DistributedDataParallel", "works")
@pytest.mark.parametrize("make", [two_layers, in_blocks])
def test_ranks_with_different_data_train_one_model(
    make: Callable[..., nn.Sequential], tmp_path: Path
) -> None:
    first, second = on_ranks(with_ddp, tmp_path, make)
    assert same(first, second)
    together = [torch.cat(pair) for pair in zip(data(0), data(1), strict=True)]
    for grow, found in first.items():
        network = make(torch.float64)
        alone = run(network, network, grow, together)
        assert found["schedule"]["updates"] == (0 if grow == "static" else STEPS // 3)
        assert same(found["patterns"], alone["patterns"])
        torch.testing.assert_close(found["tensors"], alone["tensors"])


def with_zero(rank: int) -> Any:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    network, adam = two_layers(torch.float64), torch.optim.Adam
    optimizer = ZeroRedundancyOptimizer(network.parameters(), optimizer_class=adam, lr=1e-2)
    dst = DSTScheduler(network, optimizer, **SETTINGS)
    for x in data(0):
        train_step(network, optimizer, x)
        optimizer.zero_grad()  # only the moments tell which layers trained
        dst.step()
    return [p.detach() for p in network.parameters()]


@pytest.mark.tool("ZeroRedundancyOptimizer", "works")
def test_moments_that_each_rank_has_a_part_of(tmp_path: Path) -> None:
    network = two_layers(torch.float64)
    run(network, network, "random", data(0))
    for found in on_ranks(with_zero, tmp_path):
        assert same(found, [p.detach() for p in network.parameters()])


def what_one_rank_cannot_do(rank: int) -> None:
    network, optimizer, dst = scheduled()
    with pytest.raises(RuntimeError, match="seed"):
        DSTScheduler(network, optimizer, **{**SETTINGS, "seed": rank})
    train_step(network, optimizer, data(0)[0].float())
    good, network[2].regions = network[2].regions, [] if rank == 0 else [((0, 99), (0, 5))]
    before = snapshot(network, optimizer, dst)
    with pytest.raises(RuntimeError if rank == 0 else ValueError, match="Region"):
        dst.step()
    assert same(snapshot(network, optimizer, dst), before)
    network[2].regions = good
    assert dst.step()
    other, optimizer2, random = scheduled(grow="random")
    moment = optimizer2.state[other[0].values]
    if rank == 0:
        moment["of another shape"] = torch.zeros(3)
    with pytest.raises(RuntimeError if rank else ValueError, match=r"rank 0|parameter's shape"):
        random.step()
    moment.clear()
    assert random.step()
    # They come apart, as without DistributedDataParallel.
    train_step(network, optimizer, data(rank)[0].float())
    with pytest.raises(RuntimeError, match="weights"):
        dst.step()

    network = two_layers(seed=rank)
    network(torch.randn(1, 2, 20))
    model = DistributedDataParallel(network)
    if rank == 0:
        model(torch.randn(1, 2, 20))
        return
    with pytest.raises(RuntimeError, match="ranks"):
        model(torch.randn(1, 2, 20))


@pytest.mark.tool(
    "DistributedDataParallel of ranks whose patterns differ after a first use", "refuses"
)
def test_what_one_rank_cannot_do_no_rank_does(tmp_path: Path) -> None:
    on_ranks(what_one_rank_cannot_do, tmp_path)


def built_apart(rank: int) -> Any:
    network = two_layers(torch.float64, seed=rank)
    model = DistributedDataParallel(network)
    return run(model, network, "gradient", data(rank))


@pytest.mark.tool("DistributedDataParallel of ranks that built different patterns", "works")
def test_the_first_rank_sets_the_patterns_of_all(tmp_path: Path) -> None:
    first, second = on_ranks(built_apart, tmp_path)
    assert same(first, second)
    together = [torch.cat(pair) for pair in zip(data(0), data(1), strict=True)]
    network = two_layers(torch.float64)
    assert same(first["patterns"], run(network, network, "gradient", together)["patterns"])


def with_an_unused_layer(rank: int) -> Any:
    """Each rank runs one branch: the other's parameters get no gradient there."""
    torch.manual_seed(0)
    branches = nn.ModuleList([SparseConv1d(2, 3, 5) for _ in range(WORLD)])
    branches.forward = lambda x: branches[rank](x)
    model = DistributedDataParallel(branches, find_unused_parameters=True)
    _, optimizer, dst = scheduled(branches, grow="gradient")
    train_step(model, optimizer, torch.randn(3, 2, 20))
    assert dst.step()
    return branches.state_dict()


def test_a_layer_that_one_rank_did_not_use_grows_by_what_the_other_saw(tmp_path: Path) -> None:
    assert same(*on_ranks(with_an_unused_layer, tmp_path))


def alone(rank: int) -> Any:
    mine, _ = dist.new_subgroups(1)
    network, optimizer, dst = scheduled(two_layers(seed=rank), **SETTINGS, process_group=mine)
    for x in data(rank):
        train_step(network, optimizer, x.float())
        dst.step()
    if rank == 0:  # a training loop of one process asks no other rank
        tiny.run(tiny.network())
    return network[0].pattern.positions()


def test_a_process_can_train_alone(tmp_path: Path) -> None:
    first, second = on_ranks(alone, tmp_path)
    assert not first.equal(second)


# --- sharded parameters ---


def sharded(network: nn.Sequential, how: str) -> nn.Module:
    if how == "fully_shard":
        from torch.distributed.fsdp import fully_shard

        mesh = dist.device_mesh.init_device_mesh("cpu", (WORLD,))
        for layer in sparse_layers(network):
            fully_shard(layer, mesh=mesh)
        fully_shard(network, mesh=mesh)
        return network
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(
        network, device_id=torch.device("cpu"), use_orig_params=how == "original parameters"
    )


def with_shards(rank: int, how: str) -> None:
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        set_model_state_dict,
    )

    network = two_layers()
    twin = copy.deepcopy(network)
    model = sharded(network, how)
    optimizers = [torch.optim.Adam(m.parameters(), 1e-2) for m in (model, twin)]
    x = data(0)[0].float()  # the same on both ranks, so that one process is their mean
    for _ in range(STEPS):
        for m, optimizer in zip((model, twin), optimizers, strict=True):
            train_step(m, optimizer, x)
    torch.testing.assert_close(model(x), twin(x))

    options = StateDictOptions(full_state_dict=True)
    state = get_model_state_dict(model, options=options)
    plain = two_layers(seed=1)
    plain.load_state_dict(state)
    assert plain[0].pattern == twin[0].pattern
    torch.testing.assert_close(plain(x), twin(x))
    set_model_state_dict(model, state, options=options)
    torch.testing.assert_close(model(x), plain(x))
    message = r"sharded|prune\.remove"
    with pytest.raises(RuntimeError, match=message):
        DSTScheduler(model, optimizers[0], **SETTINGS)
    with pytest.raises(RuntimeError, match=message):
        network[0].set_pattern(KernelCSR.full(network[0].pattern.shape))
    if how == "flat parameters":  # gathers them for a load, so that another pattern fits
        plain = two_layers(seed=2)
        set_model_state_dict(model, plain.state_dict(), options=options)
    else:
        with pytest.raises(RuntimeError, match="pattern"):
            set_model_state_dict(model, two_layers(seed=2).state_dict(), options=options)
    torch.testing.assert_close(model(x), plain(x))


@pytest.mark.tool("FSDP (fully_shard)", "works", "fixed patterns; seed all ranks alike")
@pytest.mark.tool("FSDP1", "works", "fixed patterns; seed all ranks alike")
@pytest.mark.tool("FSDP with DSTScheduler", "refuses", "NotImplementedError; DDP works")
@pytest.mark.parametrize("how", ["fully_shard", "flat parameters", "original parameters"])
def test_sharded_parameters(how: str, tmp_path: Path) -> None:
    on_ranks(with_shards, tmp_path, how)
