"""Changes of several workers, message by message: whoever comes or goes meanwhile, all serve the same."""

from __future__ import annotations

import random
from typing import Any

import pytest

from fastinfer.changes import LONGEST_START, Changes


class Worker:
    """A worker's end of the line: what it was told, and what it serves. Its files are those of `disk`."""

    def __init__(self, changes: Changes, disk: dict[str, str]) -> None:
        self.changes, self.disk = changes, disk
        self.told: list[dict[str, Any]] = []
        self.answers: list[str | None] = []
        self.prepared: dict[int, tuple[str, str | None]] = {}
        self.begin = {name: dict(versions) for name, versions in (changes.served or {}).items()}
        self.models: dict[str, str] = {}
        changes.starts(self)

    def serve(self, now: float) -> None:
        self.models = {name: versions["1"] for name, versions in self.begin.items()}
        self.changes.serves(self, lambda **message: self.told.append(message), self.begin, now)

    def ask(self, number: int, name: str, unload: bool, now: float) -> None:
        self.changes.take(self, {"ask": number, "name": name, "unload": unload}, now)

    def obey(self, now: float) -> None:
        """Take the next message."""
        message = self.told.pop(0)
        if "prepare" in message:
            number, name = message["prepare"], message["name"]
            stamp = None if message["unload"] else self.disk.get(name)
            if stamp is None and not message["unload"]:
                self.changes.take(self, {"change": number, "code": "load_failed", "error": "there is none"}, now)
                return
            self.prepared[number] = name, stamp
            stamps = {} if stamp is None else {"1": stamp}
            self.changes.take(self, {"change": number, "failures": {}, "stamps": stamps}, now)
        elif "commit" in message:
            name, stamp = self.prepared.pop(message["commit"])
            self.models.pop(name, None) if stamp is None else None
            if stamp is not None and not message["refused"]:
                self.models[name] = stamp
            self.changes.take(self, {"change": message["commit"]}, now)
        elif "discard" in message:
            self.prepared.pop(message["discard"], None)
        else:
            self.answers.append(None if message["failure"] is None else message["failure"]["error"])


def test_a_worker_that_starts_meanwhile_takes_part() -> None:
    changes, disk = Changes(), {"m": "new"}
    first, second = Worker(changes, disk), Worker(changes, disk)
    for worker in (first, second):
        worker.begin = {"m": {"1": "old"}}
        worker.serve(0)
    first.ask(1, "m", False, 1)
    second.obey(1)
    changes.ends(second, 2)  # it has loaded the new version already: the change goes on
    third = Worker(changes, disk)
    assert third.begin == {"m": {"1": "old"}}
    first.obey(3)
    assert first.told == []  # nothing is served before the third has it too
    third.serve(4)
    third.obey(4)
    first.obey(5)
    third.obey(5)
    first.obey(6)
    assert first.answers == [None]
    assert first.models == third.models == {"m": "new"}
    assert changes.served == {"m": {"1": "new"}}


def test_a_worker_that_does_not_come_up_is_not_waited_for_without_end() -> None:
    changes, disk = Changes(), {"m": "new"}
    first = Worker(changes, disk)
    first.serve(0)
    first.ask(1, "m", False, 0)
    Worker(changes, disk)
    first.obey(1)
    changes.go_on(LONGEST_START)
    assert first.told == []
    changes.go_on(LONGEST_START + 1)
    first.obey(LONGEST_START + 1)  # discards it
    first.obey(LONGEST_START + 1)
    assert first.answers == ["a worker is starting; try again later"]
    assert first.models == {}


@pytest.mark.parametrize("seed", range(200))
def test_all_serve_the_same_whatever_comes_between(seed: int) -> None:
    """Workers that ask, load, die and come at any moment; when all is quiet, they agree, and everybody was answered."""
    chance = random.Random(seed)
    changes, disk = Changes(), {"a": "0", "b": "0"}
    living = [Worker(changes, disk) for _ in range(chance.randint(1, 3))]
    starting: list[Worker] = []
    for worker in living:
        worker.serve(0)
    asked: list[Worker] = []
    for number in range(1, 60):
        now = number / 10
        worker = chance.choice(living)
        act = chance.random()
        if act < 0.15:
            disk[chance.choice("ab")] = str(number)
        elif act < 0.3:
            asked.append(worker)
            worker.ask(number, chance.choice("abc"), chance.random() < 0.3, now)
        elif act < 0.4:
            if len(living) > 1 and chance.random() < 0.7:
                living.remove(worker)
                changes.ends(worker, now)
                starting.append(Worker(changes, disk))
            elif starting:
                changes.ends(starting.pop(), now)
                starting.append(Worker(changes, disk))
        elif act < 0.5 and starting:
            living.append(starting.pop(0))
            living[-1].serve(now)
        elif worker.told:
            worker.obey(now)
    living.extend(starting)
    for worker in starting:
        worker.serve(7)
    while any(worker.told for worker in living):
        for worker in living:
            while worker.told:
                worker.obey(8)
    for worker in living:
        assert worker.models == {name: versions["1"] for name, versions in (changes.served or {}).items()}
        assert worker.prepared == {}
        assert len(worker.answers) == asked.count(worker)
