from __future__ import annotations

import threading

import pytest

from instructpt.training.ahead import Ahead


def test_the_next_one_is_made_while_this_one_is_used_and_none_behind_the_end():
    made, second = [], threading.Event()

    def make(step):
        made.append((step, threading.current_thread() is threading.main_thread()))
        if step == 4:
            second.set()
        return step * 10

    ahead = Ahead(make, end=5)
    assert ahead.get(3) == 30
    assert second.wait(10)
    assert ahead.get(4) == 40
    ahead.close()
    assert made == [(3, False), (4, False)]


def test_a_step_that_nobody_foresaw_is_made_as_well():
    ahead = Ahead(lambda step: step, end=10)
    assert [ahead.get(step) for step in (0, 7, 8, 2)] == [0, 7, 8, 2]
    ahead.close()


def test_an_error_comes_where_its_step_is_asked_for():
    def make(step):
        if step == 1:
            raise ValueError("row 7")
        return step

    ahead = Ahead(make, end=3)
    assert ahead.get(0) == 0
    with pytest.raises(ValueError, match="row 7"):
        ahead.get(1)
    ahead.close()
