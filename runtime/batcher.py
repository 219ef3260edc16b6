"""DynamicBatcher: texts of many callers in, batches out, each answer back to its caller.

What cannot be a text is refused to who asks and never waits. `exchange.py` holds what waits,
`tokenizing.py` makes tokens of it, `waiting.py` chooses what goes together, `workers.py` has it
executed.
"""

import _thread
import atexit
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from types import TracebackType
from typing import Any, Self, Unpack

import numpy as np

from .counters import Counters
from .encoder import Encoder
from .errors import CoromError, DeadlineExceeded, InputTypeError
from .exchange import Exchange
from .options import TextOptions, Wish, as_texts, check_options, not_negative, positive
from .request import Answer, Request, Untokenized, Usage
from .tokens import Tokens, check_text
from .vectors import Vectors
from .windows import windows
from .workers import Workers

PIECE_TEXTS = 256
PIECE_CHARACTERS = 8192
"""A call with many texts waits in pieces of this size, two at a time."""
SHORT_CHARACTERS = 2048
"""What is tokenized right in the event loop; more would hold up its other tasks."""
TOGETHER_CHARACTERS = 512
"""A text that a thread asks for is tokenized with those of others if it is no longer than this."""


class DynamicBatcher:
    """Puts texts that many callers ask for at the same time into batches. Threads may share it.

    ``max_batch_tokens``: upper bound of rows × padded length of a batch; None takes the encoder's.
    ``max_wait_us``: how long a busy worker may wait for a batch to fill up, counted from the text
    that is due first; an idle one takes what is there at once. ``max_queue_tokens``: tokens that
    may wait; a call beyond that is refused with ``Overloaded``. ``max_queue_s``: likewise, seconds
    that all that waits may take at the pace measured; a text that has waited for others three
    times as long after all is given up with ``Overloaded``. None for no limit.

    The encoder stays the caller's; closing it closes its batchers first. A batcher that nobody
    refers to any more answers what it was asked, and its threads end.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        max_batch_tokens: int | None = None,
        max_wait_us: float = 0,
        max_queue_tokens: int = 131_072,
        max_queue_s: float | None = None,
    ) -> None:
        encoder.require_open()
        self.encoder = encoder
        self._plain = check_options(encoder.manifest)
        tokens = encoder.batch_tokens if max_batch_tokens is None else max_batch_tokens
        # On a GPU one packs its batch while another's is executed.
        workers = 2 if encoder.device == "cuda" else encoder.workers
        self._exchange = Exchange(
            positive("max_batch_tokens", tokens),
            not_negative("max_wait_us", max_wait_us) / 1e6,
            positive("max_queue_tokens", max_queue_tokens),
            None if max_queue_s is None else not_negative("max_queue_s", max_queue_s),
            workers,
            adaptive=encoder.adaptive,
        )
        self._process = os.getpid()
        # Who refers to it for longer than its user does so weakly.
        close = partial(_close, weakref.ref(self), "the encoder was closed.")
        self._stay_open = encoder.before_close(close)
        _open.add(self)
        self._gone = weakref.finalize(self, _let_go, self._exchange, self._stay_open, os.getpid())
        self._gone.atexit = False
        self._workers = Workers(
            self._exchange,
            encoder.run,
            encoder.run_alone,
            encoder.tokenize_each,
            workers,
            preemptible=encoder.preemptible,
        )

    def submit(
        self, text: str, *, timeout: float | None = None, **options: Unpack[TextOptions]
    ) -> Answer:
        """Return the future of one text's vector (H,).

        ``timeout``: seconds after which an answer is of no use: the caller gets
        ``DeadlineExceeded`` then, and a text that still waits is not computed. ``options``: as for
        ``Encoder.encode``. ``cancel`` of the future drops a text that still waits.

        Raises ``Overloaded``, and at once what ``Encoder.encode`` raises for such a text.
        """
        wish, deadline = self._check(timeout, options)
        check_text(text, "the text")
        request = Request(self._tokenize_soon(text, wish), wish, deadline)
        answer = Answer(partial(self._exchange.drop, request))
        request.future = answer
        self._exchange.put(request)
        return answer

    async def aencode(
        self,
        texts: str | Iterable[str] | Iterable[list[int]],
        *,
        timeout: float | None = None,
        usage: Usage | None = None,
        **options: Unpack[TextOptions],
    ) -> Vectors:
        """Return what ``Encoder.encode`` does, (H,) or (N, H), without blocking the event loop.

        Any number of texts will do: many wait in pieces, and others are served in between. It is
        refused with ``Overloaded`` as a whole or not at all. ``timeout`` counts for all of it.
        Cancelling drops what still waits. Texts may be given as lists of this encoder's token ids;
        special tokens that they lack are added. ``usage`` is told what the call took.
        """
        import asyncio  # whoever awaits has loaded it; otherwise it takes 40 ms

        loop = asyncio.get_running_loop()
        wish, deadline = self._check(timeout, options)
        series: list[Any] = [texts] if isinstance(texts, str) else list(as_texts(texts)[0])
        if series:
            self._exchange.refuse_if_full()
        vectors = np.empty((len(series), wish.dimension), np.float32)
        flight: deque[Request] = deque()
        end = 0
        try:
            for piece in windows(series, PIECE_TEXTS, PIECE_CHARACTERS):
                start, end = end, end + len(piece)
                began = time.perf_counter()
                tokens = await self._tokenize(series, piece, wish, start)
                if usage is not None:
                    usage.add_tokens(tokens, time.perf_counter() - began)
                request = Request(
                    tokens,
                    wish,
                    deadline,
                    vectors[start:end],
                    loop,
                    usage,
                    of_more=len(piece) < len(series),
                )
                self._exchange.put(request, even_if_full=start > 0)
                flight.append(request)
                if len(flight) == 2:
                    await _first(flight)
            while flight:
                await _first(flight)
        finally:
            for request in flight:
                self._exchange.drop(request)
                request.leave()
        return vectors[0] if isinstance(texts, str) else vectors

    def wait_s(self) -> float:
        """Return the seconds that all that waits will take, as measured; 0 if nothing was."""
        return self._exchange.wait_s()

    def counters(self) -> Counters:
        """Return what waits, what is executed, and what was counted so far."""
        return self._exchange.counters()

    def close(self, *, drain: bool = True) -> None:
        """Refuse new texts, answer those that wait, and end the threads.

        Without ``drain`` those that wait get a ``CoromError``; what is executed is answered. Called
        by what a caller attached to an answer, it does not wait for the threads: it is in one.
        """
        self._close("this batcher is closed. Make a new one: DynamicBatcher(encoder).", drain=drain)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _check(self, timeout: float | None, options: TextOptions) -> tuple[Wish, float | None]:
        """Return what is asked for and until when."""
        if os.getpid() != self._process:
            raise CoromError(
                "this batcher was made before the process forked, and its threads stayed behind. "
                "Open an encoder and a batcher in each process, after the fork."
            )
        self._workers.start()
        wish = check_options(self.encoder.manifest, **options) if options else self._plain
        if timeout is None:
            return wish, None
        if isinstance(timeout, bool) or not isinstance(timeout, int | float):
            raise InputTypeError(f"timeout is {timeout!r}; pass seconds, or None for no limit.")
        if not timeout > 0:
            raise DeadlineExceeded(f"the deadline has passed already: timeout is {timeout} s.")
        self._workers.watch_deadlines()
        return wish, time.monotonic() + timeout

    def _tokenize_soon(self, text: str, wish: Wish) -> Tokens | Untokenized:
        """Return a text to be tokenized later, or its tokens if they decide whether it may wait.

        Raises what ``Encoder.encode`` does for such a text.
        """
        exchange = self._exchange
        if not exchange.has_room():
            exchange.refuse_if_full()
        elif wish.truncate is True and len(wish.prefix) + len(text) <= TOGETHER_CHARACTERS:
            about = self.encoder.tokenizer.estimate(text, prefix=wish.prefix)
            if exchange.has_room(about):
                return Untokenized(text, about)
        return self.encoder.tokenize(text, wish)

    async def _tokenize(
        self, series: list[Any], piece: list[Any], wish: Wish, start: int
    ) -> Tokens:
        """Return the tokens of a piece of the series, which begins at ``start``."""
        texts = piece[0] if len(series) == 1 and isinstance(piece[0], str) else piece
        prefix = len(wish.prefix)
        size = sum(prefix + len(text) for text in piece if isinstance(text, str | list))
        if size <= SHORT_CHARACTERS:
            return self.encoder.tokenize(texts, wish, start)
        import asyncio

        return await asyncio.to_thread(self.encoder.tokenize, texts, wish, start)

    def _close(self, reason: str, *, drain: bool) -> None:
        _open.discard(self)
        self._gone.detach()
        self._stay_open()
        if os.getpid() != self._process:
            return  # the threads, and whoever holds the lock, stayed in the other process
        self._exchange.close(reason, drain=drain)
        if self._workers.has(threading.current_thread()):
            return  # as in a callback: what waits is answered after it
        self._workers.join()
        self._exchange.close(reason, drain=False)  # if no thread was left to drain it
        self._workers.join_watch()


_open: weakref.WeakSet[DynamicBatcher] = weakref.WeakSet()
"""Batchers to close when the process ends, so that nobody waits for what no thread computes."""


@atexit.register
def _close_all() -> None:
    for batcher in list(_open):
        batcher._close("the process ends.", drain=False)


def _close(batcher: weakref.ref[DynamicBatcher], reason: str) -> None:
    if (alive := batcher()) is not None:
        alive._close(reason, drain=False)


def _let_go(exchange: Exchange, stay_open: Callable[[], None], process: int) -> None:
    """Have the threads of a batcher that is gone end once all that waits is answered."""
    stay_open()
    if os.getpid() == process:
        # The collector may have come to it in a thread that holds the exchange's lock.
        _thread.start_new_thread(partial(exchange.close, "this batcher is gone.", drain=True), ())


async def _first(flight: deque[Request]) -> None:
    """Wait for the first request, and take it out once it is answered."""
    future = flight[0].future
    assert future is not None
    await future  # type: ignore[misc]  # made by a loop
    flight.popleft()
