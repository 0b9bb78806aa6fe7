"""How calls come in: grpc.aio's server, with acceptors of our own.

grpc.aio accepts one call at a time, with a task, a wait and a look-up by name for each, which is near half of what a
call costs; and a call whose path is not UTF-8 ends its loop, and with it the server and all its calls. Here each method
is registered with gRPC's core, which compares the paths itself, and has acceptors that wait for its next call. What is
none of them is told so by an acceptor of its own, unseen.

This reaches into `grpc._cython.cygrpc`, which is private: `faults` names what of it is missing, and grpc.aio's own
server then serves.

Source: grpc/grpc `src/python/grpcio/grpc/_cython/_cygrpc/aio/server.pyx.pxi`.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from functools import partial
from traceback import clear_frames
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio._server
from grpc._cython import cygrpc

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fastinfer.protocols.grpc_intake import Intake, Receipt

ARGUMENTS = {
    "_handle_unary_unary_rpc": 3, "_handle_unary_stream_rpc": 3, "_handle_stream_stream_rpc": 3,
    "_schedule_rpc_coro": 4,
}  # fmt: skip
METHODS = {
    "_make_request_call_future": 2, "_request_call": 1, "_request_registered_call": 2,
    "add_registered_method_handlers": 2,
}  # fmt: skip
PAUSE = 0.05  # seconds after an accept that failed, which none does but when the server leaves
logger = logging.getLogger("fastinfer.server")


def faults() -> list[str]:
    """The private parts of grpc that are used here and that are missing or of another kind, by name."""
    names = "_RequestCallError", "_ServicerContext", "AioServer", "get_working_loop"
    found = [name for name in names if not hasattr(cygrpc, name)]
    if found:
        return found
    for owner, counts in ((cygrpc, ARGUMENTS), (cygrpc.AioServer, METHODS)):
        for name, count in counts.items():
            code = getattr(getattr(owner, name, None), "__code__", None)
            if code is None or code.co_argcount != count:
                found.append(name)
    return found


class Core(cygrpc.AioServer):  # type: ignore[misc]
    """gRPC's server, with a loop that only waits for its end, and tasks beside it that accept.

    Attributes:
        open: the tasks of the calls that are open.
    """

    def begin(self, handlers: Mapping[str, Any], acceptors: Mapping[str, int], most: int, full: Any,
              intake: Intake, heavy: Any) -> None:
        """Say what is served, before the start; see `AcceptingServer`."""
        self.handlers, self.acceptors, self.most, self.full = handlers, acceptors, most, full
        self.intake, self.heavy = intake, heavy
        self.loop = asyncio.get_running_loop()
        self.ended = self.loop.create_future()
        self.tasks: set[asyncio.Task[None]] = set()
        self.open: set[asyncio.Task[None]] = set()
        self.leaving = False
        self.add_registered_method_handlers(dict(handlers))

    def _make_request_call_future(self, method: bytes | None) -> asyncio.Future[Any]:
        """Asked for each method, and with None for what is none of them, by the loop, which waits for what it is given.

        That is one future for all, which is done when the server leaves.
        """
        name = "" if method is None else method.decode()
        for _ in range(self.acceptors.get(name, 1)):
            task = self.loop.create_task(self.accept(method, name))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        return self.ended

    async def accept(self, method: bytes | None, name: str) -> None:
        """Take call after call of a method."""
        handler = STRANGE if method is None else self.handlers[name]
        take = self.taking(handler, name)
        while not self.leaving:
            try:
                state = await (self._request_call() if method is None else self._request_registered_call(method))
            except cygrpc._RequestCallError as error:
                if self.leaving and not self.ended.done():
                    self.ended.set_exception(error)  # which the loop takes for its end
                await asyncio.sleep(PAUSE)
                continue
            except Exception:
                logger.exception("a gRPC call could not be accepted")
                await asyncio.sleep(PAUSE)
                continue
            if len(self.open) < self.most:
                call = take(handler, state, self.loop)
            else:
                call = cygrpc._handle_stream_stream_rpc(self.full, state, self.loop)
            task = self.loop.create_task(cygrpc._schedule_rpc_coro(call, state, self.loop, name))
            self.open.add(task)
            task.add_done_callback(self.open.discard)

    def taking(self, handler: Any, name: str) -> Any:
        """What runs a call of a method, given its handler, state and loop."""
        if handler.request_streaming:
            return cygrpc._handle_stream_stream_rpc
        if handler.response_streaming:
            return partial(self.take, cygrpc._handle_unary_stream_rpc, name, handler.unary_stream)
        return partial(self.take, cygrpc._handle_unary_unary_rpc, name, handler.unary_unary)

    async def take(self, handle: Any, name: str, behaviour: Any, handler: Any, state: Any, loop: Any) -> None:
        """Run a call of one message, which is to be whole before the behaviour is asked."""
        context = cygrpc._ServicerContext(state, None, None, loop)
        once = Once(behaviour, self.intake)
        once.receipt = receipt = self.intake.begin(context.peer(), lambda: self.end(once, name, context))
        try:
            await handle(once, state, loop)
        except BaseException as error:
            empty_frames(error)
            raise
        finally:
            self.intake.done(receipt, -1)
        if not once.called:
            await cygrpc._handle_stream_stream_rpc(EMPTY, state, loop)

    def end(self, once: Once, name: str, context: Any) -> None:
        """End a call whose message takes too much room."""
        once.called = True
        task = self.loop.create_task(self.refuse(name, context))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def refuse(self, name: str, context: Any) -> None:
        with suppress(Exception):  # it is over either way, and an abort always raises
            await self.heavy(name, context)

    async def shutdown(self, grace: float | None) -> None:
        self.leaving = True
        await super().shutdown(grace)


class AcceptingServer(grpc.aio._server.Server):  # type: ignore[misc]
    """A server of these methods, by path, for the running loop.

    Args:
        acceptors: by path; one where there is no number.
        most: calls that may be open at a time.
        full: the handler of a call past that, whatever its method: of a stream of requests and of answers.
        intake: is told of each call of one message, until that is whole.
        heavy: ends, by its path and context, a call that `intake` wants ended.

    Raises:
        TypeError: grpc's private parts are of another kind.
    """

    def __init__(
        self,
        handlers: Mapping[str, Any],
        options: Sequence[tuple[str, Any]],
        *,
        acceptors: Mapping[str, int],
        most: int,
        full: Any,
        intake: Intake,
        heavy: Any,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        arguments: tuple[Any, ...] = (self._loop, None, [], None, tuple(options), None)
        try:
            self._server = Core(*arguments)
        except TypeError:
            self._server = Core(*arguments, False)  # newer ones ask about xDS
        self._server.begin(handlers, acceptors, most, full, intake, heavy)


class Once:
    """A handler for one call: grpc.aio leaves a call that ends without a message unanswered, and never tells.

    Attributes:
        called: the call has its answer, or will get it.
        receipt: that the message is waited for.
    """

    __slots__ = ("behaviour", "called", "intake", "receipt")
    request_deserializer = response_serializer = None
    receipt: Receipt

    def __init__(self, behaviour: Any, intake: Intake) -> None:
        self.behaviour = behaviour
        self.intake = intake
        self.called = False

    async def unary_unary(self, body: bytes, context: Any) -> Any:
        self.called = True
        self.intake.done(self.receipt, len(body))
        return await self.behaviour(body, context)

    async def unary_stream(self, body: bytes, context: Any) -> Any:
        self.called = True
        self.intake.done(self.receipt, len(body))
        async for answer in self.behaviour(body, context):
            yield answer


def empty_frames(error: BaseException | None) -> None:
    """Drop what the functions held that an error ended.

    gRPC keeps the error with the call, and its frames keep the call: a cycle, which would keep the message until Python
    looks for such.
    """
    while error is not None:
        clear_frames(error.__traceback__)
        error = error.__context__


async def strange(requests: Any, context: Any) -> None:
    """The handler of a call of no known method."""
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")


async def empty(requests: Any, context: Any) -> None:
    """The handler of a call without the message that its method takes."""
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call has no whole message")


STRANGE, EMPTY = map(grpc.stream_stream_rpc_method_handler, (strange, empty))
