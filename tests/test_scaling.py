"""The cost model: what it counts, what it recovers from measurements that it made itself, and what it refuses."""

import random

import pytest

from sslcourse.studies.pipeline_timetable import bubble, timetable
from sslcourse.studies.scaling import (
    Job,
    Machine,
    Network,
    efficiency,
    fit,
    left_out,
    messages,
    predicted,
    step_seconds,
)

JOB = Job(weights=1_000_000, tokens=4096)
FAST, SLOW = Network(1e-5, 1e11), Network(5e-5, 1e10)


def test_the_messages_are_those_of_rings():
    assert messages("ddp", JOB, 4) == (6, 2 * 3 / 4 * 4e6)
    assert messages("fsdp", JOB, 4) == (9, 3 * 3 / 4 * 4e6)
    assert messages("none", JOB, 1) == (0, 0)
    assert messages("ddp", JOB, 1) == (0, 0)


def test_half_the_bytes_on_the_wire_take_half_the_time():
    machine, network = Machine(1e12), Network(0.0, 1e9)
    whole, half = (step_seconds("ddp", Job(10**6, 64, gradient_bytes=size), 8, machine, network) for size in (4, 2))
    assert half["communication"] == pytest.approx(whole["communication"] / 2)


def test_communication_hides_behind_arithmetic_up_to_the_overlap():
    machine = Machine(1e12)
    seen = step_seconds("ddp", JOB, 8, machine, SLOW)
    hidden = step_seconds("ddp", JOB, 8, machine, SLOW, overlap=0.5)
    assert hidden["exposed"] == pytest.approx(max(0, seen["communication"] - 0.5 * seen["arithmetic"]))
    assert seen["total"] == seen["arithmetic"] + seen["communication"]


def test_a_fast_network_inside_nodes_helps():
    flat = step_seconds("ddp", JOB, 64, Machine(1e12), SLOW)
    nodes = step_seconds("ddp", JOB, 64, Machine(1e12), SLOW, node=8, inside=FAST)
    assert nodes["communication"] < flat["communication"] / 4


def test_ranks_beyond_the_cores_take_turns():
    two, four = (step_seconds("none", JOB, world, Machine(1e9, cores=2), FAST) for world in (2, 4))
    assert two["total"] == pytest.approx(four["total"])
    assert efficiency("none", JOB, 4, Machine(1e9, cores=2), FAST) == pytest.approx(0.5)


@pytest.mark.parametrize("seed", range(5))
def test_the_fit_recovers_the_numbers_that_made_the_times(seed):
    draw = random.Random(seed)
    machine = Machine(draw.uniform(1e9, 1e11), draw.uniform(1e-4, 1e-2), cores=2, per_token=draw.uniform(1e-7, 1e-5))
    network = Network(draw.uniform(1e-5, 1e-3), draw.uniform(1e8, 1e10))
    measured = []
    for world in (1, 2, 3, 4):
        for weights, tokens in ((10**5, 256), (10**6, 1024), (3 * 10**6, 512)):
            job, strategy = Job(weights, tokens), "ddp" if world > 1 else "none"
            record = {"strategy": strategy, "weights": weights, "tokens": tokens, "world": world}
            measured.append(record | {"seconds": step_seconds(strategy, job, world, machine, network)["total"]})
    found, wire = fit(measured, cores=2)
    wanted = (machine.flops, machine.overhead, machine.per_token)
    assert (found.flops, found.overhead, found.per_token) == pytest.approx(wanted, rel=1e-6)
    assert (wire.latency, wire.bandwidth) == pytest.approx((network.latency, network.bandwidth), rel=1e-6)


def test_no_number_of_the_fit_is_negative():
    measured = []
    for world in range(1, 9):
        for tokens in (1024, 4096):
            seconds = step_seconds("none", Job(10**6, tokens), world, Machine(1e9, 0.01), FAST)["total"]
            messages_cost = -1e-4 * (world - 1)  # as noise may have it: the more messages, the faster
            measured.append({"strategy": "ddp", "weights": 10**6, "tokens": tokens, "world": world,
                             "seconds": seconds + messages_cost})  # fmt: skip
    machine, network = fit(measured, cores=float("inf"))
    least = min(machine.overhead, machine.per_token, network.latency)
    assert least >= 0
    assert predicted(measured[-1], machine, network) == pytest.approx(measured[-1]["seconds"], rel=0.2)
    assert network.latency == 0
    assert network.bandwidth > 0


def records(machine, network, strategy="ddp"):
    for world in (1, 2, 3, 4):
        for weights in (10**5, 10**6):
            for tokens in (512, 2048):
                one = {"strategy": strategy if world > 1 else "none", "weights": weights, "tokens": tokens}
                yield one | {"world": world, "seconds": predicted(one | {"world": world}, machine, network)}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_what_was_left_out_is_predicted_from_the_others(strategy):
    measured = list(records(Machine(1e10, 1e-3, 2, 1e-6), Network(1e-4, 1e9), strategy))
    assert left_out(measured, 2) == pytest.approx([0] * len(measured), abs=1e-6)
    measured[5]["seconds"] *= 2  # as if something else had run meanwhile
    errors = left_out(measured, 2)
    assert errors[5] == pytest.approx(-0.5, abs=1e-6)  # the others do not know of it
    assert max(map(abs, errors)) == abs(errors[5])


def test_a_world_that_was_never_measured_is_predicted():
    measured = list(records(Machine(1e10, 1e-3, 2, 1e-6), Network(1e-4, 1e9)))
    machine, network = fit([one for one in measured if one["world"] != 3], 2)
    for one in measured:
        assert predicted(one, machine, network) == pytest.approx(one["seconds"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit([], 2), "0 records"),
        (lambda: messages("zero", JOB, 2), "strategy='zero'"),
        (lambda: messages("ddp", JOB, 0), "world=0"),
        (lambda: step_seconds("ddp", JOB, 2, Machine(1e9), SLOW, overlap=1.5), "overlap=1.5"),
        (lambda: step_seconds("ddp", JOB, 12, Machine(1e9), SLOW, node=8, inside=FAST), "not a whole number of nodes"),
        (lambda: bubble(0, 4), "stages=0"),
        (lambda: timetable(2, 0), "micro_batches=0"),
        (lambda: timetable(2, 2, "zigzag"), "schedule='zigzag'"),
    ],
)
def test_what_cannot_be_computed_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- the pipeline's timetable ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("stages", "count"), [(1, 1), (2, 3), (4, 4), (4, 8), (3, 1), (5, 13)])
def test_every_job_is_done_once_in_order_and_the_idle_share_is_the_formulas(schedule, stages, count):
    rows = timetable(stages, count, schedule)
    when = {}
    for stage, row in enumerate(rows):
        assert sorted(filter(None, row)) == sorted(f"{kind}{n + 1}" for kind in "FB" for n in range(count))
        when |= {(job, stage): time for time, job in enumerate(row) if job}
    for number in range(1, count + 1):
        for stage in range(stages - 1):
            assert when[f"F{number}", stage] < when[f"F{number}", stage + 1]
            assert when[f"B{number}", stage + 1] < when[f"B{number}", stage]
        assert when[f"F{number}", stages - 1] < when[f"B{number}", stages - 1]
    idle = sum(job == "" for row in rows for job in row) / sum(map(len, rows))
    assert idle == pytest.approx(bubble(stages, count))


def test_one_forward_one_backward_holds_no_more_than_the_stages_left():
    for stage, row in enumerate(timetable(4, 12, "1f1b")):
        held = most = 0
        for job in row:
            held += {"F": 1, "B": -1, "": 0}[job[:1]]
            most = max(most, held)
        assert most <= 4 - stage
