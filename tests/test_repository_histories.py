"""Random histories of a repository: whatever comes, goes, is damaged or badly configured, the server and a plain twin
of its rules say the same of every version, alias and worker."""

from __future__ import annotations

import os
import random
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import ServerProcess, Start, read_answer
from test_lifecycle import BODY, QUICK, answered, ask, connect_to_all, on, put

HISTORIES = int(os.environ.get("FASTINFER_REPOSITORIES", "1"))  # of each kind
STEPS = {"explicit": 20, "poll": 10}
NAMES = ("a", "b", "c")
BAD_CONFIGURATIONS = ("max_batch_sise = 3\n", "[[[", 'max_batch_size = "x"\n', "[version_policy]\nlatest = 0\n",
                      '[aliases]\n"a b" = 1\n', "\0", "[version_policy]\nlatest = 1\nall = true\n")  # fmt: skip
Target = tuple[str, str | None, str | None]  # model, version, alias
TARGETS: list[Target] = [*((name, version, None) for name in NAMES for version in (None, "1", "2", "3", "4")),
                         *((name, None, alias) for name in NAMES for alias in "xy")]  # fmt: skip


@dataclass
class Laid:
    """A model on the disk: the number that each version answers, None where it is damaged."""

    versions: dict[int, float | None] = field(default_factory=dict)
    configured: bool = False  # it has a model.toml
    valid: bool = True  # which is in order
    policy: tuple[str, Any] | None = None
    aliases: dict[str, int] = field(default_factory=dict)
    rows: int = 2

    def found(self) -> dict[str, float | None]:
        """What a load of it finds."""
        if not self.versions:
            return {"": None} if self.configured else {}
        if not self.valid:
            return {str(version): None for version in self.versions}
        kind, value = self.policy or ("latest", None)
        chosen = set(sorted(self.versions, reverse=True)[:value] if kind == "latest" else value)
        return {str(version): self.versions.get(version) for version in chosen | set(self.aliases.values())}

    def configuration(self) -> str:
        policy = "" if self.policy is None else f"[version_policy]\n{self.policy[0]} = {self.policy[1]}\n"
        aliases = "".join(f"{alias} = {version}\n" for alias, version in self.aliases.items())
        return f"{QUICK.replace('2', str(self.rows))}{policy}[aliases]\n{aliases}"


class Twin:
    """What a server serves: numbers by model and version, names of versions, and what has failed."""

    def __init__(self) -> None:
        self.served: dict[str, dict[str, float]] = {}
        self.aliases: dict[str, dict[str, str]] = {}
        self.failed: dict[str, set[str]] = {}

    def unload(self, name: str) -> None:
        for table in (self.served, self.aliases, self.failed):
            table.pop(name, None)

    def load(self, name: str, laid: Laid | None) -> bool:
        """Whether it was done; what fails leaves what was there before."""
        found = {} if laid is None else laid.found()
        if laid is None or not found:
            return False
        failed = {version for version, number in found.items() if number is None}
        good = {version: number for version, number in found.items() if number is not None}
        versions = {**(self.served.get(name, {}) if failed else {}), **good}
        before = self.aliases.get(name, {}) if failed else {}
        said = {alias: str(version) for alias, version in laid.aliases.items()} if laid.valid and laid.versions else {}
        aliases = before | {alias: version if version in versions else before.get(alias, version)
                            for alias, version in said.items()}  # fmt: skip
        self.unload(name)
        if versions:
            self.served[name], self.aliases[name] = versions, aliases
        if failed:
            self.failed[name] = failed
        return not failed

    def answer(self, target: Target) -> float | None:
        name, version, alias = target
        versions = self.served.get(name, {})
        if alias is not None:
            version = self.aliases.get(name, {}).get(alias, "")
        elif version is None:
            version = max(versions, key=int, default="")
        return versions.get(version)


class Disk:
    """The repository, changed at random: each change is there at once and whole."""

    def __init__(self, root: Path, chance: random.Random) -> None:
        self.root, self.chance = root, chance
        self.models: dict[str, Laid] = {}
        self.numbers = 0.0

    def change(self) -> str:
        """Change one thing. Returns the model that it is of."""
        chance, name = self.chance, self.chance.choice(NAMES)
        laid, act = self.models.get(name), self.chance.random()
        if laid is None or act < 0.45:
            self.put(name, chance.randint(1, 4), good=chance.random() < 0.7)
        elif act < 0.6 and laid.versions:
            version = chance.choice(list(laid.versions))
            self.away(self.root / name / str(version))
            del laid.versions[version]
        elif act < 0.95:
            self.configure(name, laid)
        else:
            self.away(self.root / name)
            del self.models[name]
        return name

    def put(self, name: str, version: int, *, good: bool) -> None:
        laid = self.models.setdefault(name, Laid())
        self.numbers += 1
        folder = self.root / name / f".{version}.new"
        put(folder / "model.onnx", self.numbers)
        if not good:
            whole = (folder / "model.onnx").read_bytes()
            damaged = self.chance.choice([b"", b"no model", whole[:self.chance.randint(1, 99)]])
            (folder / "model.onnx").write_bytes(damaged)
        if (self.root / name / str(version)).exists():
            (folder / "model.onnx").rename(self.root / name / str(version) / "model.onnx")
            folder.rmdir()
        else:
            folder.rename(self.root / name / str(version))
        laid.versions[version] = self.numbers if good else None

    def configure(self, name: str, laid: Laid) -> None:
        chance = self.chance
        act = chance.randrange(5)
        laid.configured, laid.valid = True, act != 0
        if act == 1:
            laid.policy = chance.choice([None, ("latest", 1), ("latest", 2)])
        elif act == 2:
            laid.policy = "specific", sorted(chance.sample(range(1, 5), chance.randint(1, 2)))
        elif act == 3:
            laid.aliases = {alias: chance.randint(1, 4) for alias in chance.sample("xy", chance.randint(0, 2))}
        elif act == 4:
            laid.rows = chance.randint(1, 3)
        (self.root / name / ".part").write_text(laid.configuration() if act else chance.choice(BAD_CONFIGURATIONS))
        (self.root / name / ".part").rename(self.root / name / "model.toml")

    def away(self, path: Path) -> None:
        shutil.rmtree(path.rename(path.with_name(".gone")))


def difference(twin: Twin, connections: list[Any], *, only_what_is_known: bool) -> Any:
    """Where a worker says anything else than the twin; None where all agree."""
    ready = {(name, version) for name, versions in twin.served.items() for version in versions}
    failed = {(name, version) for name, versions in twin.failed.items() for version in versions}
    for connection in connections:
        told = {(each["name"], each["version"]): each for each in on(connection, "/v2/repository/index").json()
                if each["state"] != "UNLOADING"}  # fmt: skip
        if {key for key, each in told.items() if each["state"] == "READY"} != ready:
            return "ready", told, ready
        if {key for key, each in told.items() if each["reason"] not in ("", "unloaded")} != failed:
            return "reasons", told, failed
        if only_what_is_known and set(told) != ready | failed:
            return "more", told
        for target in TARGETS:
            name, version, alias = target
            path = f"/v2/models/{name}{f'@{alias}' if alias else ''}{f'/versions/{version}' if version else ''}"
            number, answer = twin.answer(target), on(connection, f"{path}/infer", BODY)
            if answer.status not in (200, 404, 503) or (None if answer.status != 200 else answered(answer)) != number:
                return target, answer.status, answer.body, number
            connection.sendall(f"GET {path}/ready HTTP/1.1\r\nHost: t\r\n\r\n".encode())
            if (read_answer(connection, "GET").status == 200) != (number is not None):
                return target, "ready", number
    return None


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("mode", ["explicit", "poll"])
@pytest.mark.parametrize("seed", range(HISTORIES))
def test_the_server_says_what_its_rules_say(
    seed: int, mode: str, workers: int, tmp_path: Path, start_server: Start
) -> None:
    chance = random.Random(f"{seed} {mode} {workers}")
    disk, twin = Disk(tmp_path / "models", chance), Twin()
    for name in NAMES[:2]:
        disk.put(name, 1, good=True)
        twin.load(name, disk.models[name])
    options = ("--load-model", "*") if mode == "explicit" else ("--poll-period", "0.1")
    server = start_server(disk.root, "--model-control", mode, "--workers", str(workers), *options)
    connections = connect_to_all(server, workers)
    for step in range(STEPS[mode]):
        name = disk.change()
        if mode == "explicit":
            name = chance.choice([name, name, *NAMES])
            call(server, name, twin, disk, unload=chance.random() < 0.2)
            assert difference(twin, connections, only_what_is_known=False) is None, (step, name)
            continue
        laid = disk.models.get(name)
        if laid is None or not laid.found():
            twin.unload(name)
        else:
            twin.load(name, laid)
        deadline = time.monotonic() + 30
        while (told := difference(twin, connections, only_what_is_known=True)) is not None:
            assert time.monotonic() < deadline, (step, name, told)
            time.sleep(0.05)
    assert server.stop() == 0
    assert "Traceback" not in server.log()


def call(server: ServerProcess, name: str, twin: Twin, disk: Disk, *, unload: bool) -> None:
    """A load or an unload of both, which end alike."""
    answer = ask(server, "POST", f"/v2/repository/models/{name}/{'unload' if unload else 'load'}")
    if unload:
        twin.unload(name)
        assert answer.status == 200
    else:
        assert answer.status == (200 if twin.load(name, disk.models.get(name)) else 500), answer.body
