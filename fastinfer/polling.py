"""model_control poll: look at the repository from time to time, and serve what is there."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from fastinfer.errors import ConfigurationError, FastinferError, ShuttingDownError
from fastinfer.service import in_thread

if TYPE_CHECKING:
    from fastinfer.service import Service
    from fastinfer.versions import Look

logger = logging.getLogger("fastinfer.polling")
LONGEST_WAIT = 600.0  # seconds before what has failed is tried again


class Poller:
    """Brings the models of a service to what the repository has of them."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._served = service.registry.first_look  # as which each model was loaded, or tried
        self._before: Look = {}  # the last look
        self._complaint = ""
        self._failed: dict[str, tuple[float, float]] = {}  # when it is tried again, and how long that was waited for

    async def run(self) -> None:
        """Look, again and again, once the models are loaded."""
        await self._service.loaded()
        self._served = self._service.registry.first_look
        while not self._service.draining:
            await asyncio.sleep(self._service.settings.poll_period)
            try:
                await self.look()
            except Exception as error:  # nobody's fault but ours: the next look may be better
                if str(error) != self._complaint:
                    logger.exception("a look at the repository failed; the models stay as they are")
                self._complaint = str(error)

    async def look(self) -> None:
        """Change what two looks in a row have seen changed in the same way: what is still arriving waits."""
        try:
            now = await in_thread(self._service.registry.look)
        except ConfigurationError as error:  # the repository cannot be read, which says nothing of the models
            if str(error) != self._complaint:
                logger.warning("%s; the models stay as they are", str(error).rstrip("."))
            self._complaint = str(error)
            return
        self._complaint = ""
        before, self._before = self._before, now
        for name in sorted({*now, *self._served}):
            seen = now.get(name)
            again = name in self._failed and time.monotonic() >= self._failed[name][0]
            if (seen == self._served.get(name) and not again) or seen != before.get(name):
                continue
            if seen is not None and await in_thread(seen.is_being_written):
                continue
            await self._change(name, unload=seen is None)
            self._served = {each: state for each, state in {**self._served, name: seen}.items() if state is not None}

    async def _change(self, name: str, *, unload: bool) -> None:
        """Load or unload; what fails is tried again when its files change, and now and then without that."""
        waited = self._failed.pop(name, (0.0, self._service.settings.poll_period))[1]
        try:
            await self._service.change(name, unload=unload)
        except ShuttingDownError:
            return
        except Exception as error:
            wait = min(2 * waited, LONGEST_WAIT)
            self._failed[name] = time.monotonic() + wait, wait
            logger.error("%s; it is tried again in %.0f s, or when its files change", str(error).rstrip("."), wait,
                         exc_info=None if isinstance(error, FastinferError) else error)
