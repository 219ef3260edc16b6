"""What a worker executes: a batch, and shorter requests that it is put aside for."""

from collections.abc import Iterator

from .preemption import Preemption
from .request import Request
from .waiting import Chosen


class Running:
    """The batch of one worker. What changes is changed under the exchange's lock.

    ``preemption``: None if the batch is not to be put aside.
    """

    def __init__(self, batch: Chosen, preemption: Preemption | None) -> None:
        self.batch, self.preemption = batch, preemption
        self.tokens = batch.tokens
        self.aside: Chosen | None = None
        """What is executed in its middle."""

    @property
    def texts(self) -> int:
        """How many are in hand."""
        return sum(1 for _ in self.requests())

    def requests(self) -> Iterator[Request]:
        """Yield the request of each text in hand."""
        for chosen in (self.batch, self.aside):
            if chosen is not None:
                yield from (request for request, _ in chosen.texts)

    def gives_way(self, request: Request) -> bool:
        """Say whether a request is due before the batch, and shorter."""
        return request.due < self.batch.due and request.waiting_tokens < self.tokens

    @property
    def can_be_put_aside(self) -> bool:
        """Whether that is possible, and not asked for already."""
        return not (self.preemption is None or self.preemption.wanted or self.aside is not None)

    def put_aside(self) -> None:
        """Have its worker put the batch aside; which then sees what for."""
        assert self.preemption is not None
        self.preemption.want()

    def go_on(self) -> None:
        """Note that the batch is not put aside any more, until it is again."""
        assert self.preemption is not None
        self.preemption.want(False)
        self.aside = None
