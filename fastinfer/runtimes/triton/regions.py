"""Shared memory with a Triton on the same host: a batch's tensors lie in it, and only what is said of them travels.

Triton maps a region that was registered with it, reads inputs there and writes outputs. Nobody but Triton knows when it
has done so for a request that was given up here; so such a region is retired: nothing is written into it or read from
it any more, and it goes when Triton, which counts a region's uses from 2.51 on, has let go of it.

A region is a file in /dev/shm, locked by its process as long as that lives: a file that can be locked was left behind.
"""

import asyncio
import contextlib
import fcntl
import ipaddress
import logging
import mmap
import os
import re
import secrets
import time
import weakref
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fastinfer.runtimes.triton.exchange import Failed

logger = logging.getLogger("fastinfer.triton")

FOLDER = Path("/dev/shm")  # noqa: S108 - where shm_open has its objects
PREFIX = "fastinfer-triton-"
MOST_BYTES = 256 << 20  # of the regions of one url, those included that Triton may still use
MOST_REGIONS = 64
WORTH = 64 << 10  # bytes of a batch and its answer below which sending them costs no more
COUNTING = (2, 51)  # the first Triton that does not take away a region under a request
MARK = 16  # random bytes at an output's end: where they still are, Triton has not written it
IDLE_S = 60.0  # seconds after which a region that nobody used goes
AGAIN_S = 1.0  # seconds until the next try after one that failed for reasons of the moment
FIRST_S, LONGEST_S = 0.02, 5.0  # between two looks at what is retired


class Region:
    """A piece of shared memory; its name is its key, too."""

    def __init__(self, size: int) -> None:
        """Make it, all its pages there.

        Raises:
            OSError: there is no room, or no such folder.
        """
        while True:
            self.name = PREFIX + secrets.token_hex(16)
            path = FOLDER / self.name
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            self.drop = weakref.finalize(self, dropped, path, file)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Without its pages a full file system would end the process at the first write.
                os.posix_fallocate(file, 0, size)
                self.memory = mmap.mmap(file, size)
            except BlockingIOError:  # one who looks for what was left behind was quicker
                self.drop()
                continue
            except BaseException:
                self.drop()
                raise
            self.size = size
            self.mark = secrets.token_bytes(MARK)
            self.used_at = time.monotonic()
            return

    def put(self, offset: int, array: np.ndarray[Any, Any]) -> None:
        """Write a C-contiguous array of at least one byte."""
        self.memory[offset : offset + array.nbytes] = array.reshape(-1).view(np.uint8).data

    def mark_end(self, end: int) -> None:
        """Of an output that is yet to come."""
        self.memory[end - MARK : end] = self.mark

    def get(self, offset: int, shape: Collection[int], dtype: np.dtype[Any], size: int) -> np.ndarray[Any, Any]:
        """A copy of what Triton wrote.

        Raises:
            ValueError: it wrote nothing.
        """
        if self.memory[offset + size - MARK : offset + size] == self.mark:
            raise ValueError("an output was not written")
        return np.frombuffer(self.memory, dtype, size // dtype.itemsize, offset).reshape(tuple(shape)).copy()


def dropped(path: Path, file: int) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
    os.close(file)


def left_behind(name: str) -> bool:
    """Whether a region's process is gone. One that cannot be looked at is not ours to judge."""
    try:
        file = os.open(FOLDER / name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        with contextlib.suppress(OSError):
            (FOLDER / name).unlink()
        return True
    finally:
        os.close(file)


def is_here(address: str) -> bool:
    """Whether a host:port is of the loopback."""
    host = address.rpartition(":")[0].strip("[]").lower()
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class Registrar(Protocol):
    """The part of a link that shared memory needs; all of it raises Failed."""

    async def server(self) -> Mapping[str, Any]: ...

    async def register(self, name: str, size: int) -> None: ...

    async def unregister(self, name: str) -> None: ...

    async def registered(self) -> set[str]:
        """Names of all regions that Triton has."""
        ...


class Consent:
    """Whether shared memory is used with a url, of all its links; None until somebody has tried.

    Args:
        wanted: as the setting has it.
    """

    def __init__(self, address: str, wanted: bool | str) -> None:
        self.address = address
        self.least = WORTH if wanted == "auto" else 0  # bytes of a batch
        self.given: bool | None = None if wanted is True or (wanted == "auto" and is_here(address)) else False

    def refuse(self, why: object) -> None:
        if self.given is not False:
            self.given = False
            logger.warning("Triton at %s does not share memory, so tensors travel: %s", self.address, why)


class Regions:
    """The regions of a url that one link uses, on its loop. A batch for which there is none travels, and wishes one.

    Args:
        timeout: seconds that a question about them may take.
    """

    def __init__(self, registrar: Registrar, consent: Consent, timeout: float) -> None:
        self.registrar = registrar
        self.consent = consent
        self.timeout = timeout
        self.free: list[Region] = []
        self.busy: set[Region] = set()
        self.retired: set[Region] = set()
        self.generation: set[Region] = set()  # those that Triton knows, as far as it has not been restarted
        self.not_before = 0.0
        self.maker: asyncio.Task[None] | None = None
        self.tender: asyncio.Task[None] | None = None
        self.woken = asyncio.Event()
        self.looked = False

    @property
    def all(self) -> list[Region]:
        return [*self.free, *self.busy, *self.retired]

    def take(self, size: int) -> Region | None:
        """A region of at least so many bytes, to be given back or retired; None: there is none now."""
        if self.consent.given is False:
            return None
        fitting = [region for region in self.free if region.size >= size]
        if not fitting:
            self.wish(size)
            return None
        region = min(fitting, key=lambda each: each.size)
        self.free.remove(region)
        self.busy.add(region)
        return region

    def give_back(self, region: Region) -> None:
        """Triton has answered, and is done with it."""
        if region not in self.busy:  # closed meanwhile
            return
        if region not in self.generation:
            self.retire(region)
            return
        self.busy.discard(region)
        region.used_at = time.monotonic()
        self.free.append(region)

    def retire(self, region: Region) -> None:
        """Triton may still use it."""
        if region in self.busy:
            self.busy.discard(region)
            self.retired.add(region)
            self.tend()

    def forget(self) -> None:
        """Triton does not know a region any more: it was restarted, and knows none."""
        logger.info("Triton at %s has forgotten the shared memory", self.consent.address)
        self.generation.clear()
        self.retired.update(self.free)
        self.free.clear()
        self.tend()

    # ---- more of them --------------------------------------------------------------------------------------------
    def wish(self, size: int) -> None:
        """Have one made while the batch travels."""
        if self.maker is not None or time.monotonic() < self.not_before:
            return
        size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        held = sum(region.size for region in self.all)
        while self.free and held + size > MOST_BYTES:
            region = self.free.pop(0)
            held -= region.size
            self.retired.add(region)
            self.tend()
        if sum(region.size for region in self.all) + size <= MOST_BYTES and len(self.all) < MOST_REGIONS:
            self.maker = asyncio.get_running_loop().create_task(self.make(size))

    async def make(self, size: int) -> None:
        try:
            await self.add(size)
        except OSError as error:
            self.not_before = time.monotonic() + IDLE_S
            logger.warning("there is no shared memory of %d bytes, so tensors travel: %s", size, error)
        finally:
            self.maker = None

    async def add(self, size: int) -> None:
        self.not_before = time.monotonic() + AGAIN_S
        region = None
        try:
            async with asyncio.timeout(self.timeout):
                if self.consent.given is None and not counts(version := (await self.registrar.server()).get("version")):
                    self.consent.refuse(f"its version {version!r} is not {'.'.join(map(str, COUNTING))} or later")
                    return
                region = await asyncio.to_thread(Region, size)
                await self.registrar.register(region.name, size)
                self.consent.given = True
                if not self.looked:
                    self.looked = True
                    await self.look_for_old()
        except Failed as failed:
            if region is not None:
                self.retired.add(region)
                self.tend()
            if failed.status is not None and self.consent.given is None:
                self.consent.refuse(failed)
            return
        except TimeoutError:
            if region is not None:
                self.retired.add(region)
                self.tend()
            return
        self.not_before = 0.0
        self.generation.add(region)
        self.free.append(region)
        self.tend()

    async def look_for_old(self) -> None:
        """What processes that were killed have left, here and in Triton."""
        names = await self.registrar.registered()
        with contextlib.suppress(OSError):
            names.update(os.listdir(FOLDER))
        old = [name for name in names if is_ours(name) and left_behind(name)]
        for name in old:
            with contextlib.suppress(Failed):
                await self.registrar.unregister(name)

    # ---- fewer of them -------------------------------------------------------------------------------------------
    def tend(self) -> None:
        """See to it that what is retired goes."""
        self.woken.set()
        if self.tender is None:
            self.tender = asyncio.get_running_loop().create_task(self.keep_tending())

    async def keep_tending(self) -> None:
        """Let go of what Triton has let go of, and of what nobody uses, as long as there is anything."""
        try:
            pause = FIRST_S
            while self.all:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause if self.retired else LONGEST_S):
                        await self.woken.wait()
                    pause = FIRST_S
                    await asyncio.sleep(pause)
                self.woken.clear()
                pause = min(2 * pause, LONGEST_S)
                now = time.monotonic()
                for region in [each for each in self.free if now - each.used_at > IDLE_S]:
                    self.free.remove(region)
                    self.retired.add(region)
                if self.retired:
                    await self.let_go()
        finally:
            self.tender = None

    async def let_go(self) -> None:
        """Of those retired regions that Triton does not use."""
        with contextlib.suppress(Failed, TimeoutError):
            async with asyncio.timeout(self.timeout):
                asked = list(self.retired)
                for region in asked:
                    with contextlib.suppress(Failed):  # it is in use
                        await self.registrar.unregister(region.name)
                names = await self.registrar.registered()
                for region in asked:
                    if region.name not in names:
                        self.retired.discard(region)
                        self.generation.discard(region)
                        region.drop()

    async def close(self) -> None:
        """Let go of all, whether Triton uses it or not."""
        for task in (self.maker, self.tender):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        regions = self.all
        self.free.clear()
        self.busy.clear()
        self.retired.clear()
        self.consent = Consent(self.consent.address, False)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.timeout):
                for region in regions:
                    with contextlib.suppress(Failed):
                        await self.registrar.unregister(region.name)
        for region in regions:
            region.drop()


def counts(version: object) -> bool:
    """Whether a Triton of this version counts the uses of a region."""
    found = re.match(r"(\d{1,4})\.(\d{1,4})\b", version) if isinstance(version, str) else None
    return found is not None and (int(found[1]), int(found[2])) >= COUNTING


def is_ours(name: str) -> bool:
    return re.fullmatch(re.escape(PREFIX) + "[0-9a-f]{32}", name) is not None
