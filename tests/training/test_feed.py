"""Batches come in order from a thread, an error with the step it belongs to."""

import threading
import time

import pytest

from aqaa_jax.training.feed import Feed


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_every_step_gets_its_batch(ahead):
    made = []
    feed = Feed(lambda step: made.append(step) or step * 10, 8, ahead)
    assert [feed(step) for step in range(3)] == [0, 10, 20]
    assert [feed(step) for step in (6, 7, 2, 3)] == [60, 70, 20, 30]
    feed.close()
    assert max(made) == 7  # nothing behind the end


def test_it_is_ahead_while_a_step_runs():
    here = threading.get_ident()
    threads = []
    feed = Feed(lambda step: threads.append(threading.get_ident()) or time.sleep(0.1), 100, 2)
    feed(0)
    time.sleep(0.5)
    began = time.monotonic()
    feed(1)
    feed(2)
    assert time.monotonic() - began < 0.09 and here not in threads
    feed.close()
    assert len(threads) < 10


def test_an_error_belongs_to_its_step():
    def make(step):
        if step == 2:
            raise ValueError("row 7: no such code")
        return step

    feed = Feed(make, 5, 2)
    assert [feed(0), feed(1)] == [0, 1]
    with pytest.raises(ValueError, match="row 7"):
        feed(2)
    feed.close()
