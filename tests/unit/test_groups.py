"""Of an ordering group one delivery runs at a time inside a worker, in order, and none past one that stays."""

from __future__ import annotations

from cloudq.broker import Delivery
from cloudq.runner import Job
from cloudq.worker.flight import Flight
from cloudq.worker.groups import Groups


def _flight(group: str = "g", queue: str = "q") -> Flight:
    return Flight(Job(Delivery(queue=queue, body="", receipt=None, group=group)))


def test_only_the_first_of_a_group_goes_and_the_others_follow_in_order() -> None:
    groups = Groups()
    first, second, third = _flight(), _flight(), _flight()
    assert [groups.enter(each) for each in (first, second, third)] == [True, False, False]
    assert groups.leave(first, skip_rest=False) == [second]
    assert groups.leave(second, skip_rest=False) == [third]
    assert groups.leave(third, skip_rest=False) == []
    assert groups.enter(_flight())


def test_groups_and_queues_do_not_wait_for_each_other() -> None:
    groups = Groups()
    assert groups.enter(_flight("a"))
    assert groups.enter(_flight("b"))
    assert groups.enter(_flight("a", queue="other"))


def test_those_behind_one_that_stays_all_come_back() -> None:
    groups = Groups()
    first, second, third = _flight(), _flight(), _flight()
    for each in (first, second, third):
        groups.enter(each)
    assert groups.leave(first, skip_rest=True) == [second, third]
    assert groups.enter(_flight())


def test_one_that_is_given_back_before_its_turn_leaves_the_others_waiting() -> None:
    groups = Groups()
    first, second, third = _flight(), _flight(), _flight()
    for each in (first, second, third):
        groups.enter(each)
    assert groups.leave(second, skip_rest=True) == []
    assert not groups.enter(_flight())
    assert groups.leave(first, skip_rest=False) == [third]


def test_leaving_twice_does_nothing() -> None:
    groups = Groups()
    first = _flight()
    groups.enter(first)
    assert groups.leave(first, skip_rest=False) == []
    assert groups.leave(first, skip_rest=True) == []
