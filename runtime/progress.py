"""A progress bar on stderr for long work, drawn by rich; nothing where it is not asked for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(label: str, total: int | None, *, show: bool) -> Iterator[Callable[[int], None]]:
    """Yield a function that advances the bar by a count; ``total`` None: the end is unknown."""
    if not show:
        yield lambda _count: None
        return
    from rich import progress as rich
    from rich.console import Console

    class Rate(rich.ProgressColumn):
        """How many a second, lately."""

        def render(self, task: rich.Task) -> str:
            return f"{task.speed:,.0f}/s" if task.speed else ""

    bar = rich.Progress(
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        Rate(),
        rich.TimeElapsedColumn(),
        rich.TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    with bar:
        task = bar.add_task(label, total=total)
        yield lambda count: bar.advance(task, count)
