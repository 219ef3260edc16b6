"""An encoder that can be sent to other processes: each opens its own, once, when it needs it."""

import inspect
import os
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

from .batcher import DynamicBatcher
from .encoder import Encoder
from .errors import BundleError, InputTypeError
from .manifest import load_manifest, manifest_sha256

ENCODER_OPTIONS = frozenset(inspect.signature(Encoder).parameters) - {"bundle"}


class LateEncoder(NamedTuple):
    """A bundle and the options to open it with; pickles as text, never as an open encoder."""

    bundle: str
    manifest_sha256: str
    options: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, bundle: str | Path, **options: Any) -> "LateEncoder":  # noqa: ANN401
        """Note a bundle; raises ``BundleError`` if there is none, before any process is asked."""
        folder = Path(bundle).absolute()
        load_manifest(folder)
        if unknown := sorted(options.keys() - ENCODER_OPTIONS):
            raise InputTypeError(
                f"there is no option '{unknown[0]}'. An encoder is opened with: "
                f"{', '.join(sorted(ENCODER_OPTIONS))}."
            )
        return cls(str(folder), manifest_sha256(folder), tuple(sorted(options.items())))

    def encoder(self) -> Encoder:
        """Return this process's encoder; it stays open until the process ends.

        Raises ``BundleError`` if the bundle at this path is not the one that was noted.
        """
        key = (os.getpid(), self)
        with _opening:
            if key not in _opened:
                folder = Path(self.bundle)
                load_manifest(folder)  # whose error says more than a file that cannot be opened
                if manifest_sha256(folder) != self.manifest_sha256:
                    raise BundleError(
                        f"'{self.bundle}' is not the same bundle here as where the work was begun. "
                        "Copy that one to every machine, at the same path."
                    )
                _opened[key] = Encoder(self.bundle, **dict(self.options))
            return _opened[key]

    def batcher(self) -> DynamicBatcher:
        """Return this process's batcher on the encoder, in which all its callers meet.

        They are parts of this process and have their texts already, so any number may wait.
        """
        encoder, key = self.encoder(), (os.getpid(), self)
        with _opening:
            if key not in _batchers:
                _batchers[key] = DynamicBatcher(encoder, max_queue_tokens=sys.maxsize)
            return _batchers[key]


# By process too: a fork inherits encoders whose threads it does not have. They are kept, since
# closing one there would wait for those threads.
_opened: dict[tuple[int, LateEncoder], Encoder] = {}
_batchers: dict[tuple[int, LateEncoder], DynamicBatcher] = {}
_opening = threading.Lock()


def _new_lock() -> None:
    global _opening  # noqa: PLW0603  # another thread may have held it when the process forked
    _opening = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)
