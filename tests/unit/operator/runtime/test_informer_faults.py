"""F2 and F4 over HTTP: a watch that lies, and a server that is away."""

from __future__ import annotations

import threading
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from fakeapi import FakeApi, Mangler, as_it_is, eventually

from instructpt_operator.runtime.backoff import ExponentialBackoff
from instructpt_operator.runtime.informer import Informer

from .conftest import Naps, Witness, agree, cached

Make = Callable[..., Informer]
OUTAGE_SECONDS = {"1-minute": 60.0, "5-minutes": 300.0, "30-minutes": 1800.0}


def change_something(api: FakeApi, rng: Random) -> None:
    name = f"thing-{rng.randrange(12)}"
    if ("default", name) in api.objects and rng.random() < 0.3:
        api.remove(name)
        if rng.random() < 0.3:
            api.put(name, again=True)  # the same name, another uid
    else:
        api.put(name, value=rng.random())


@pytest.mark.parametrize("part", range(6))
def test_f2_mangled_watch_converges_and_handlers_can_follow(
    api: FakeApi, informer: Make, witness: Witness, seed: int, part: int
) -> None:
    rng = Random(seed + part)
    mangler = Mangler(rng)
    made = informer()
    eventually(lambda: api.watchers)
    for _ in range(4):
        api.mangle = mangler
        for _ in range(40):
            change_something(api, rng)
            if rng.random() < 0.05:
                api.end_watches()
        with api.changed:  # deletions in the gap, and no event of them ever
            api.mangle = lambda event: []
            for key in sorted(api.objects)[: rng.randrange(4)]:
                api.remove(key[1])
            # Else the last event that was sent may be of the newest version: nothing would tell that others were lost.
            api.put("unseen", value=rng.random())
            api.mangle = as_it_is
            # What was held back comes late, of objects that are long gone.
            for event in mangler.held:
                api.send(event)
            mangler.held.clear()
            lists = api.count("list")
            if rng.random() < 0.5:
                api.expire_watches()
            else:
                api.compact()
                api.end_watches()
        agree(api, made)
        # One list was enough. (A watch that was just being opened may have met the 410 once more.)
        assert api.count("list") - lists <= 2
    eventually(lambda: cached(made) == api.truth())
    witness.check(made.store)
    assert all(mangler.counts.values()), mangler.counts
    assert made.alive


def test_f2_ghost_is_gone_within_one_list(api: FakeApi, informer: Make, witness: Witness) -> None:
    for name in "abc":
        api.put(name)
    made = informer()
    eventually(lambda: api.watchers)
    api.mangle = lambda event: []
    for name in "abc":
        api.remove(name)
    api.mangle = as_it_is
    assert len(made.store) == 3
    api.expire_watches()
    eventually(lambda: len(made.store) == 0)
    assert made.stats.relists == 1
    assert [kind for kind, _ in witness.kinds()] == ["ADDED"] * 3 + ["DELETED"] * 3


class Outage:
    """A clock that only waits move, and a server that is away until a time on it.

    A wait takes no real time, so what is counted is requests against the time that the informer believes has passed.
    """

    def __init__(self, api: FakeApi, seconds: float) -> None:
        self.api = api
        self.now = 0.0
        self.ends = seconds
        self.down = False
        self.tries: list[float] = []
        self.over = threading.Event()
        self.back_at = 0.0
        self.on_end: Callable[[], None] = lambda: None

    def clock(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        if self.down:
            self.tries.append(self.now)
        self.now += seconds
        if self.down and self.now >= self.ends:
            self.down = False
            self.back_at = self.now
            self.on_end()
            self.over.set()


def begin(outage: Outage, end_watches: Callable[[], None]) -> None:
    outage.ends += outage.now
    outage.began = outage.now  # type: ignore[attr-defined]
    outage.down = True
    end_watches()


def check(outage: Outage, made: Informer, requests: int) -> None:
    """At most one request a second while the server was away, and the first good one at most 30 s after it was back."""
    lasted = outage.ends - outage.began  # type: ignore[attr-defined]
    assert requests <= lasted, f"{requests} requests in {lasted:.0f} s"
    gaps = [later - earlier for earlier, later in zip(outage.tries, outage.tries[1:], strict=False)]
    assert all(gap > 0.49 for gap in gaps)
    assert outage.back_at - outage.ends <= 30
    assert made.alive


@pytest.mark.parametrize("seconds", OUTAGE_SECONDS.values(), ids=OUTAGE_SECONDS)
def test_f4_refused_connections(api: FakeApi, informer: Make, witness: Witness, seconds: float) -> None:
    outage = Outage(api, seconds)
    for name in "ab":
        api.put(name)
    made = informer(clock=outage.clock, wait=outage.wait)
    eventually(lambda: api.watchers)
    watches = made.stats.watches
    outage.on_end = api.start

    def go_away() -> None:
        api.stop()
        # While nobody could see.
        api.remove("a")
        api.put("c")

    begin(outage, go_away)
    assert outage.over.wait(20)
    agree(api, made)
    tries = made.stats.watches - watches
    assert tries >= 2
    check(outage, made, tries)
    assert made.stats.lists == 1, "the past was still there, so a watch was enough"
    witness.check(made.store)


@pytest.mark.parametrize("seconds", OUTAGE_SECONDS.values(), ids=OUTAGE_SECONDS)
@pytest.mark.parametrize("kind", ["5xx", "429", "429-retry-after", "html"])
def test_f4_storms(api: FakeApi, informer: Make, witness: Witness, seconds: float, kind: str) -> None:
    outage = Outage(api, seconds)
    api.retry_after = "7" if kind == "429-retry-after" else None
    code = {"5xx": "503", "html": "html"}.get(kind, "429")
    api.put("a")
    made = informer(clock=outage.clock, wait=outage.wait)
    eventually(lambda: api.watchers)
    api.fault = lambda verb: code if outage.down else None
    before = len(api.requests)
    begin(outage, api.end_watches)
    assert outage.over.wait(20)
    in_storm = len(api.requests) - before
    api.put("b")
    agree(api, made)
    check(outage, made, in_storm)
    if kind == "429-retry-after":
        gaps = [later - earlier for earlier, later in zip(outage.tries[1:], outage.tries[2:], strict=False)]
        assert all(gap > 6.99 for gap in gaps)
    witness.check(made.store)


def test_f4_half_of_all_answers_are_5xx(api: FakeApi, informer: Make, witness: Witness, naps: Naps, seed: int) -> None:
    rng = Random(seed)
    api.fault = lambda verb: rng.choice(["500", "502", "503", "504"]) if rng.random() < 0.5 else None
    made = informer()
    for _ in range(60):
        change_something(api, rng)
        if rng.random() < 0.2:
            api.end_watches()
        if rng.random() < 0.1:
            api.expire_watches()
    agree(api, made)
    witness.check(made.store)
    assert made.alive
    assert all(wait >= 0.5 for wait in naps.seconds)
    assert made.stats.errors > 0


def test_f4_silent_server_is_a_timeout_and_not_the_end(
    api: FakeApi, informer: Make, monkeypatch: pytest.MonkeyPatch, naps: Naps
) -> None:
    monkeypatch.setattr("instructpt_operator.runtime.informer.READ_SECONDS", 0.1)
    made = informer()
    eventually(lambda: api.watchers)
    api.freeze()
    eventually(lambda: made.stats.errors >= 3)
    assert naps.seconds == sorted(naps.seconds), "each wait is longer than the last"
    api.freeze(False)
    api.put("a")
    agree(api, made)
    assert made.alive


def test_f4_requests_of_an_outage_are_counted_by_status(api: FakeApi, informer: Make, client: Any) -> None:
    failures = iter(["503", "429", "reset"])
    api.fault = lambda verb: next(failures, None)
    informer(client=client)
    eventually(lambda: client.calls[("watch", 200)] == 1)
    assert client.calls == {("list", 503): 1, ("list", 429): 1, ("list", 0): 1, ("list", 200): 1, ("watch", 200): 1}


def test_f4_first_answer_after_an_outage_hurries_those_that_wait(api: FakeApi, informer: Make) -> None:
    """With waits of half a minute one informer finds the server back; the other waits no longer than that."""
    answered: list[str] = []
    made = [informer(wait=None, on_answer=lambda: answered.append("answered")) for _ in range(2)]
    eventually(lambda: len(api.watchers) == 2)
    api.stop()
    eventually(lambda: all(one._unanswered for one in made))
    for one in made:
        one._backoff = ExponentialBackoff(600.0, 600.0)
    errors = [one.stats.errors for one in made]
    eventually(lambda: all(one.stats.errors > before for one, before in zip(made, errors, strict=True)))
    api.start()
    api.put("a")
    assert answered == [], "nobody knows yet"
    made[0].hurry()
    eventually(lambda: answered)
    made[1].hurry()
    for one in made:
        agree(api, one)
    lists = api.count("list")
    for one in made:  # nothing to hurry
        one.hurry()
    assert api.count("list") == lists


@pytest.mark.parametrize("code", ["503", "429"])
def test_f4_a_server_that_answers_with_refusals_hurries_nobody(
    api: FakeApi, informer: Make, naps: Naps, code: str
) -> None:
    answered: list[str] = []
    made = informer(on_answer=lambda: answered.append("answered"))
    eventually(lambda: api.watchers)
    api.fault = lambda verb: code
    api.end_watches()
    eventually(lambda: len(naps.seconds) >= 3)
    api.fault = lambda verb: None
    eventually(lambda: api.watchers)
    assert made.alive
    assert answered == []
