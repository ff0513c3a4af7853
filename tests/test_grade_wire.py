"""Answers that live in another process: the same verdicts as in the notebook, and no message that could do harm."""

import os

import pytest
from test_exercises import EXERCISES, answers, mutants

from coursekit import checks
from coursekit.grade_referee import Remote
from coursekit.grade_wire import TEXT, Failed, Gone, Peer
from coursekit.grade_worker import Desk


@pytest.fixture
def desk():
    """A worker's desk, and the referee's end of the pipes to it, in one process."""
    here_in, there_out = os.pipe()
    there_in, here_out = os.pipe()
    desk = Desk()
    there = Peer(os.fdopen(there_in, "rb"), os.fdopen(there_out, "wb"), {"answer": desk.answer}, checks.Wrong)
    here = Peer(os.fdopen(here_in, "rb"), os.fdopen(here_out, "wb"), {}, checks.Wrong)
    there.start()
    here.start()
    yield desk, here
    here.outgoing.close()  # each end then closes what it reads
    there.outgoing.close()


def remotely(desk, exercise, function, seed=7):
    own, peer = desk
    own.module.answer = function
    peer.forget()
    return checks.grade(exercise, lambda *what: peer.call("answer", "answer", *what), seed, wrap=Remote)


@pytest.mark.parametrize(("lesson", "exercise"), EXERCISES)
def test_a_verdict_is_the_same_from_another_process(desk, lesson, exercise):
    assert remotely(desk, exercise, answers(lesson, "teacher")[exercise]).status == "passed"
    assert remotely(desk, exercise, answers(lesson, "learner")[exercise]).status == "not attempted"
    for name, (function, fragment) in mutants(lesson)[exercise].items():
        result = remotely(desk, exercise, function)
        assert result.status == "wrong", name
        assert fragment in result.message, name


def test_what_cannot_be_sent_is_known_and_bears_its_name(desk):
    own, peer = desk
    own.module.answer = lambda: (one for one in [1])
    kind, value = peer.call("answer", "answer", [], [], {})
    assert (kind, type(value).__name__, peer.opaque) == ("result", "generator", True)


@pytest.mark.parametrize("sent", [b"passed, passed", b"\xff" * 8, (TEXT + 1).to_bytes(4, "little") + b"\0" * 4,
                                  b"\x02\0\0\0\0\0\0\0{}", b"\x05\0\0\0\0\0\0\0[[[[[", b""])  # fmt: skip
def test_bytes_that_are_no_message_end_the_conversation(sent):
    here_in, there_out = os.pipe()
    peer = Peer(os.fdopen(here_in, "rb"), open(os.devnull, "wb"), {}, checks.Wrong)  # noqa: SIM115
    peer.start()
    os.write(there_out, sent)
    os.close(there_out)
    with pytest.raises(Gone):
        peer.call("answer")
    peer.outgoing.close()


def test_only_what_was_offered_can_be_called(desk):
    with pytest.raises(Failed, match="KeyError"):
        desk[1].call("system", "ls")
