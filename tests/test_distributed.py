"""Several ranks give what one gives; a lost rank costs nothing but time; what goes wrong is said by the rank it hit."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ranks.pretraining import RECIPE, corpus
from safetensors.torch import load_file
from torch.utils.data import DataLoader, TensorDataset

from sslcourse.studies.tensor_parallel import ParallelLayer
from sslcourse.train import across_ranks, loop, loop_across_ranks
from sslcourse.train.across_ranks import ShardedBatches, share, state_bytes
from sslcourse.train.start_processes import RankFailed, torchrun

RANKS = Path(__file__).parent / "ranks"


def train(out, processes, *arguments, **options):
    return torchrun(RANKS / "pretraining.py", out, *arguments, processes=processes, timeout=240, **options)


def weights(out):
    return load_file(out / "model.safetensors")


def same_bits(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- what ranks compute ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[2, 3])
def computed(request):
    said = torchrun("sslcourse.studies.rank_proofs", processes=request.param, timeout=240)
    assert said[1:] == [""] * (request.param - 1)
    return json.loads(said[0])


def test_a_ring_of_sends_equals_the_librarys_collectives(computed):
    for of_rank in computed["collectives"]:
        assert of_rank["all-reduce"]
        assert of_rank["reduce-scatter"]


def test_the_ring_sends_what_the_formula_says(computed):
    for of_rank in computed["collectives"]:
        assert of_rank["bytes"] == [1.0, 1.0, 1.0]


def test_a_tensor_that_is_not_contiguous_is_refused(computed):
    assert "tensor.contiguous()" in computed["collectives"][0]["not contiguous"]


SAME = ["by hand", *(f"{strategy}{how}" for strategy in ("ddp", "fsdp") for how in ("", " accumulated", " one row"))]


@pytest.mark.parametrize("how", SAME)
def test_ranks_give_the_gradients_of_one_process(computed, how):
    """Unequal rows a rank, unequal numbers of masked tokens, one rank with none. 1e-6: sums in another order."""
    assert computed["data_parallel"][how] <= 1e-6


@pytest.mark.parametrize(
    ("options", "bound"), [(("--seed", 5), 1e-6), (("--seed", 9, "--dtype", "float64", "--hidden-size", 48), 1e-14)]
)
def test_other_seeds_sizes_and_kinds_of_numbers_are_as_near(options, bound):
    """Seed 5 on three ranks was 1.5e-6 off while the number of ranks stood before the backward pass."""
    said = torchrun("sslcourse.studies.rank_proofs", "data_parallel", *options, processes=3, timeout=240)
    found = json.loads(said[0])["data_parallel"]
    assert max(found[how] for how in SAME) <= bound
    assert found["mean of means"] > 0.05


def test_fewer_bytes_are_fewer_and_rounded_ones_train_the_same(computed):
    found = computed["compression"]
    assert [found[name]["bytes"] for name in ("fp32", "bf16", "fp16")] == [1, 0.5, 0.5]
    assert found["thin"]["bytes"] < 0.25
    assert found["fp32"]["difference"] <= 1e-6
    for name in ("bf16", "fp16"):
        assert 1e-5 < found[name]["difference"] < 0.02  # they did travel in fewer digits
        assert found[name]["loss"] == pytest.approx(found["fp32"]["loss"], abs=0.01)
    assert found["thin"]["loss"] < 2  # it began at 4.6: what a step lost came back with the next


def test_the_loss_is_the_mean_over_all_ranks_tokens(computed):
    assert max(computed["data_parallel"][f"{strategy} loss"] for strategy in across_ranks.STRATEGIES) <= 1e-6


def test_the_mean_of_means_is_another_gradient(computed):
    """If it were not, the tests above could not see the bug."""
    assert computed["data_parallel"]["mean of means"] > 0.05


def test_weights_after_ten_steps_are_those_of_one_process(computed):
    """Adam divides by a gradient's own size: where that is rounding noise, the step is of full length all the same."""
    assert computed["ten_steps"]["sgd fp32"] <= 1e-6
    assert computed["ten_steps"]["adamw fp64"] <= 1e-10


def test_a_layer_cut_over_ranks_equals_the_whole_layer(computed):
    """Output, the input's gradient, and each rank's part of every weight's gradient. 2e-6: sums in another order."""
    for of_rank in computed["tensor_parallel"]:
        assert len(of_rank) == 8  # output, input, four matrices, two norms
        assert max(of_rank.values()) <= 2e-6


def test_a_layer_that_does_not_divide_is_refused():
    from sslcourse.models.encoder import Layer

    with pytest.raises(ValueError, match="world=3 does not divide the layer's 1 heads"):
        ParallelLayer(Layer(RECIPE.config(), 0), 0, 3)


def test_a_rank_holds_what_the_formula_says(computed):
    """FSDP pads the first dimension to whole shards, which weighs in a model this small."""
    for of_rank in computed["memory"]:
        assert of_rank["ddp"] == 1.0
        assert of_rank["fsdp"] == pytest.approx(1.0, abs=0.03)


# --- rows and batches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 7, 12, 13])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_no_row_twice_and_none_lost(rows, world):
    samplers = [ShardedBatches(rows, 4, rank, world, seed=3) for rank in range(world)]
    per_rank = [list(sampler) for sampler in samplers]
    assert {len(batches) for batches in per_rank} == {len(samplers[0])}
    seen = sorted(row for batches in per_rank for batch in batches for row in batch)
    assert seen == list(range(rows))


def test_global_batches_do_not_depend_on_the_number_of_ranks():
    whole = list(ShardedBatches(13, 4, 0, 1, seed=3))
    shares = [list(ShardedBatches(13, 4, rank, 3, seed=3)) for rank in range(3)]
    for number, batch in enumerate(whole):
        assert sorted(batch) == sorted(row for rank in range(3) for row in shares[rank][number])


def test_batches_go_on_where_they_stopped_and_epochs_differ():
    sampler = ShardedBatches(13, 4, 1, 2, seed=3)
    first, second = list(sampler), list(sampler)
    assert first != second
    for done in range(8):
        resumed = ShardedBatches(13, 4, 1, 2, seed=3, step=done)
        assert list(resumed) == (first + second)[done : 4 if done < 4 else 8]


def test_batches_feed_a_loader():
    data = TensorDataset(torch.arange(12))
    found = [int(row) for rank in (0, 1) for (batch,) in DataLoader(data, batch_sampler=ShardedBatches(12, 4, rank, 2))
             for row in batch]  # fmt: skip
    assert sorted(found) == list(range(12))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4, 0, 1), "rows=0"),
        ((4, 0, 0, 1), "batch_size=0"),
        ((4, 4, 2, 2), "rank=2 is not among the world=2"),
        ((4, 4, -1, 2), "rank=-1"),
    ],
)
def test_impossible_shares_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ShardedBatches(*arguments)


def test_a_share_of_nothing_is_refused():
    with pytest.raises(ValueError, match="world=0"):
        share([1, 2], 0, 0)


# --- memory ----------------------------------------------------------------------------------------------------------


def test_the_memory_of_zero_is_that_of_the_papers_figure():
    """Figure 1: 7.5 B weights, 64 GPUs, fp16 weights and gradients, 12 bytes of fp32 state: 120, 31.4, 16.6, 1.9 GB."""
    sizes = {"weight_bytes": 2, "gradient_bytes": 2, "optimizer_bytes": 12}
    found = [state_bytes(7_500_000_000, 64, stage, **sizes) / 1e9 for stage in range(4)]
    assert found == pytest.approx([120, 31.4, 16.6, 1.9], abs=0.05)


def test_an_unknown_stage_is_refused():
    with pytest.raises(ValueError, match="stage=4"):
        state_bytes(10, 2, 4)


# --- one process without torchrun ------------------------------------------------------------------------------------


def test_without_torchrun_there_is_one_rank_and_the_group_is_left_again():
    with across_ranks.start(device="cpu") as ranks:
        assert (ranks.rank, ranks.world) == (0, 1)
        assert across_ranks.total(2, 0.5) == [2, 0.5]
        with pytest.raises(ValueError, match="a process group exists already"), across_ranks.start():
            pass
    assert not torch.distributed.is_initialized()


def test_a_step_without_a_masked_token_is_refused():
    from sslcourse.train.loop_across_ranks import fresh_objective

    ids = torch.full((2, 8), 7)
    with across_ranks.start(device="cpu") as ranks:
        wrapped = across_ranks.wrap(fresh_objective(RECIPE, ranks.device), "ddp", ranks)
        with pytest.raises(ValueError, match="no rank has a masked token"):
            across_ranks.backward(wrapped, [(ids, torch.full_like(ids, -100))])
        with pytest.raises(ValueError, match=r"choose ddp .* or fsdp"):
            across_ranks.wrap(torch.nn.Linear(2, 2), "zero", ranks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either steps or minutes"),
        ({"steps": 0}, "the budget must be positive"),
        ({"steps": 2, "evaluations": 0}, "evaluations=0"),
        ({"steps": 2, "patience": 0}, "patience=0"),
        ({"steps": 2, "accumulate": 9}, "batch_size=8 gives 1 ranks with accumulate=9"),
    ],
)
def test_a_run_that_cannot_be_is_refused_before_anything_is_written(tmp_path, options, message):
    with across_ranks.start(device="cpu") as ranks, pytest.raises(ValueError, match=message):
        loop_across_ranks.pretrain(*corpus(), RECIPE, ranks=ranks, out=tmp_path / "run", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_timeout_that_is_none_is_refused(timeout):
    with pytest.raises(ValueError, match="timeout="), across_ranks.start(timeout):
        pass


# --- pretraining on several ranks ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run on three ranks, and what it said."""
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    return out, train(out, 3)[0]


def test_ranks_train_what_one_process_trains(undisturbed):
    """The losses of ``loop.pretrain`` on the same texts. 1e-3: AdamW in fp32 amplifies the order of sums."""
    out, _ = undisturbed
    run = loop.pretrain(*corpus(), RECIPE, steps=12, evaluations=4, device="cpu", progress=False)
    ours = [row["loss"] for row in json.loads((out / "history.json").read_text())]
    assert ours == pytest.approx([row["loss"] for row in run.history], abs=1e-3)
    from transformers import AutoModelForMaskedLM

    assert AutoModelForMaskedLM.from_pretrained(out).config.vocab_size == len(run.tokenizer)


def test_two_deaths_of_a_rank_leave_no_trace_in_the_weights(undisturbed, tmp_path):
    out, _ = undisturbed
    (said, *_) = train(tmp_path / "killed", 3, "--kill", 5, 8, max_restarts=2)
    assert said.startswith("steps 2 ")  # it was the third start that came to the end
    assert same_bits(weights(tmp_path / "killed"), weights(out))
    assert not (tmp_path / "killed.partial").exists()


def test_a_death_before_the_first_checkpoint_starts_anew(undisturbed, tmp_path):
    train(tmp_path / "killed", 3, "--kill", 2, max_restarts=1)
    assert same_bits(weights(tmp_path / "killed"), weights(undisturbed[0]))


def test_deaths_at_the_worst_moments_cost_nothing(undisturbed, tmp_path):
    """In half a file of tokens, between two names of a checkpoint, before tidying up, and after the very end."""
    (said, *_) = train(tmp_path / "killed", 3, "--plant", "tokens", "swap", "tidy", "done", max_restarts=4)
    assert said.startswith("steps 4 ")  # each start but the fifth died
    assert same_bits(weights(tmp_path / "killed"), weights(undisturbed[0]))
    left = [{path.name for path in out.iterdir()} for out in (tmp_path / "killed", undisturbed[0])]
    assert left[0] == left[1]
    assert not (tmp_path / "killed.partial").exists()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_loss_that_is_no_number_is_undone_on_all_ranks(tmp_path, strategy):
    """Batch 7 of 12, seen at step 8: all go back to the evaluation at step 6."""
    train(tmp_path / "run", 2, "--strategy", strategy, "--poison", 8)
    (event,) = json.loads((tmp_path / "run" / "run.json").read_text())["restores"]
    assert (event["step"], event["back_to"]) == (8, 6)
    assert [row["step"] for row in json.loads((tmp_path / "run" / "history.json").read_text())] == [3, 6, 9, 12]
    assert all(torch.isfinite(weight).all() for weight in weights(tmp_path / "run").values())


def test_a_finished_folder_is_not_taken_for_the_run_of_another_start(undisturbed):
    """Only ranks that were started again look whether the run is over; a new job is told that the name is taken."""
    with pytest.raises(RankFailed, match="exists and is not an empty folder"):
        train(undisturbed[0], 2)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """What two ranks left behind that shard by FSDP and were stopped after seven of twelve steps."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    train(out, 2, "--strategy", "fsdp", "--stop", 7)
    return out


def copied(stopped, tmp_path):
    shutil.copytree(stopped.with_name("run.partial"), tmp_path / "run.partial")
    return tmp_path / "run"


@pytest.mark.parametrize(("processes", "strategy"), [(1, "ddp"), (4, "fsdp")])
def test_a_checkpoint_of_two_ranks_is_read_by_one_and_by_four(undisturbed, stopped, tmp_path, processes, strategy):
    out = copied(stopped, tmp_path)
    train(out, processes, "--strategy", strategy, "--resume")
    losses = [[row["loss"] for row in json.loads((run / "history.json").read_text())] for run in (out, undisturbed[0])]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
    assert len(losses[0]) == 4


def test_nothing_of_a_checkpoint_is_pickled(stopped):
    names = {path.name for path in stopped.with_name("run.partial").rglob("*") if path.is_file()}
    assert {Path(name).suffix for name in names} == {".safetensors", ".json", ".uint16"}  # the last: tokens, no more
    assert sum(name.endswith(".safetensors") for name in names) == 2  # a shard of each rank


def damage(checkpoint, how):
    shards = sorted(checkpoint.glob("*.safetensors"))
    if how == "missing":
        shards[1].unlink()
    elif how == "cut":
        shards[0].write_bytes(shards[0].read_bytes()[:-1000])
    elif how == "zeros":
        shards[0].write_bytes(bytes(shards[0].stat().st_size))
    else:
        (checkpoint / "state.json").write_text("{")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "lacks the shard"),
        ("cut", "it was cut off"),
        ("zeros", r"the shard .* is damaged"),
        ("json", "is damaged"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_kept(stopped, tmp_path, how, message):
    out = copied(stopped, tmp_path)
    damage(out.with_name("run.partial") / "checkpoint", how)
    with pytest.raises(RankFailed, match=message):
        train(out, 2, "--strategy", "fsdp", "--resume")
    assert out.with_name("run.partial").is_dir()
    assert not out.exists()


def test_more_ranks_than_rows_are_refused(tmp_path):
    """Before anything is asked of the group, so nine need not be started."""
    nine = SimpleNamespace(world=9)
    with pytest.raises(ValueError, match="batch_size=8 gives 9 ranks"):
        loop_across_ranks.pretrain(*corpus(), RECIPE, ranks=nine, out=tmp_path / "run", steps=2)
    assert list(tmp_path.iterdir()) == []


def test_texts_of_less_than_a_batch_leave_nothing(tmp_path):
    few, held_out = corpus()
    with across_ranks.start(device="cpu") as ranks, pytest.raises(ValueError, match="too little for one batch"):
        loop_across_ranks.pretrain(few[:2], held_out, RECIPE, ranks=ranks, out=tmp_path / "run", steps=2)
    assert list(tmp_path.iterdir()) == []


# --- starting ranks --------------------------------------------------------------------------------------------------


def test_the_rank_that_failed_first_is_named_with_its_own_traceback(tmp_path):
    script = tmp_path / "fails.py"
    script.write_text(
        "import torch.distributed as dist\n"
        "from torch.distributed.elastic.multiprocessing.errors import record\n"
        "from sslcourse.train import across_ranks\n"
        "@record\n"
        "def main():\n"
        "    with across_ranks.start(timeout=30, device='cpu') as ranks:\n"
        "        if ranks.rank == 1:\n"
        "            raise ArithmeticError('planted on one')\n"
        "        dist.barrier()\n"
        "main()\n"
    )
    with pytest.raises(RankFailed, match=r"(?s)rank 1 of .*failed first.*ArithmeticError: planted on one"):
        torchrun(script)


def test_a_rank_that_dies_at_start_is_said_to(tmp_path):
    script = tmp_path / "dies.py"
    script.write_text("import os, sys\nprint('about to die', file=sys.stderr)\nos._exit(3)\n")
    with pytest.raises(RankFailed, match="exitcode"):
        torchrun(script)


def test_a_rank_that_hangs_is_cut_off_by_the_groups_timeout(tmp_path):
    with pytest.raises(RankFailed, match=r"(?i)timed out"):
        train(tmp_path / "run", 2, "--hang", 4, "--timeout", 8)


def test_a_job_that_hangs_is_ended_with_all_its_processes(tmp_path):
    import psutil

    script = tmp_path / "sleeps.py"
    script.write_text("import time\nprint('asleep', flush=True)\ntime.sleep(3600)\n")
    with pytest.raises(TimeoutError, match=r"timeout=6 s .* rank 0: asleep; rank 1: asleep"):
        torchrun(script, timeout=6)
    left = [process.cmdline() for process in psutil.process_iter() if process.status() != psutil.STATUS_ZOMBIE]
    assert not [line for line in left if str(script) in line]


def test_a_port_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(RankFailed, match=f"port={port} is in use"):
            torchrun("sslcourse.studies.rank_proofs", port=port, timeout=60)


CONFIG = """
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
num_machines: 2
num_processes: 4
main_process_ip: 127.0.0.1
main_process_port: {port}
rdzv_backend: static
mixed_precision: 'no'
"""


def test_accelerate_starts_what_its_file_says_on_two_machines(tmp_path):
    """Both of them this one, which has no GPU: what the processes compute on is their own affair."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        (tmp_path / "config.yaml").write_text(CONFIG.format(port=server.getsockname()[1]))
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    target = ["-m", "sslcourse.studies.rank_proofs", "collectives"]
    started = [
        subprocess.Popen([*command, "--config_file", tmp_path / "config.yaml", "--machine_rank", str(rank), *target],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
        for rank in (0, 1)
    ]  # fmt: skip
    said = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    found = json.loads(said[0][0])["collectives"]
    assert [of_rank["all-reduce"] for of_rank in found] == [True] * 4


@pytest.mark.parametrize(
    "options", [{"processes": 0}, {"processes": 1.5}, {"threads": 0}, {"max_restarts": -1}, {"timeout": 0}, {"port": 0}]
)
def test_impossible_starts_are_refused(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name}="):
        torchrun("no.module", **options)


# --- the command line under torchrun ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    train_texts, held_out = corpus()
    path.write_text("\n\n".join(train_texts + held_out), encoding="utf-8")
    return path


SMALL = ["--batch-size", 4, "--sequence-length", 32, "--vocab-size", 200, "--hidden-size", 64, "--layers", 1]


def command_line(*arguments, processes=2, **options):
    return torchrun("sslcourse", "pretrain", *arguments, *SMALL, processes=processes, timeout=240, **options)


@pytest.mark.parametrize("options", [(), ("--strategy", "fsdp", "--precision", "bf16", "--accumulate", 2)])
def test_the_command_works_under_torchrun_as_it_stands(tmp_path, text, options):
    first, second = command_line("--text", text, "--out", tmp_path / "run", "--steps", 4, "--evaluations", 2, *options)
    assert [line[:5] for line in first.splitlines()].count("step ") == 2  # a line for each evaluation
    assert "Best held-out loss" in first
    assert second == ""
    from transformers import AutoModelForMaskedLM

    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "run").config.hidden_size == 64


def test_the_command_counts_minutes_by_one_clock(tmp_path, text):
    first, _ = command_line("--text", text, "--out", tmp_path / "run", "--minutes", 0.02, "--evaluations", 2)
    assert [line[:5] for line in first.splitlines()].count("step ") == 2  # a line for each evaluation


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--text", "nowhere.txt", "--steps", 2), r"pretrain, rank \d: --text nowhere.txt: no such file"),
        (("--steps", 2, "--tensorboard", "log"), "--tensorboard is not written by several processes"),
        (("--steps", 2, "--accumulate", 3), "batch_size=4 gives 2 ranks with accumulate=3 less"),
    ],
)
def test_a_command_that_makes_no_sense_is_refused_by_every_rank(tmp_path, text, options, message):
    options = options if "--text" in options else ("--text", text, *options)
    with pytest.raises(RankFailed, match=message):
        command_line("--out", tmp_path / "run", *options)
    assert list(tmp_path.iterdir()) == []


def test_options_for_several_processes_are_refused_without_torchrun(tmp_path, text, capsys):
    from sslcourse.commands.command_line import main

    assert main(["pretrain", "--text", str(text), "--out", str(tmp_path / "run"), "--strategy", "fsdp"]) == 2
    assert "--nproc-per-node" in capsys.readouterr().err
