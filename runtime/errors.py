"""The errors of corom. Each says what was given, what is allowed and what to do next.

CoromError                    exit code
├── InputError (ValueError)       2      a text, option or file that cannot be used
│   ├── InputTypeError (TypeError) 2     a value of the wrong type
│   └── TextTooLong               2      a text beyond the limit that was not to be cut
├── BundleError                   2      a bundle that is incomplete, altered or too new
├── ParityError                   1      vectors differ from the reference by more than allowed
├── Overloaded                    3      more waits than may wait; nothing was computed
├── DeadlineExceeded (TimeoutError) 3    an answer that did not come in time
├── WorkerError                   3      what executes batches ended before the answer
└── UnavailableError              3      a backend, device, precision or package that is not here
    ├── EngineError               3      an engine that cannot be opened or fails
    │   └── EngineMismatchError   3      an engine for another machine
    └── CudaError                 3      a CUDA call that failed
        └── DeviceMemoryError     3      the device has too little free memory
"""


class CoromError(Exception):
    """Base of every error that corom raises on purpose."""

    exit_code = 2


class InputError(CoromError, ValueError):
    """A text, option or file that cannot be used as given."""


class InputTypeError(InputError, TypeError):
    """A value of the wrong type."""


class TextTooLong(InputError):  # noqa: N818  # says what it is
    """A text of more tokens than the limit that was not to be cut."""

    def __str__(self) -> str:
        return f"{self.args[0]} Shorten it, or have such texts cut: truncate=True (--truncate)."


class BundleError(CoromError):
    """A bundle that is incomplete, altered or written by a newer corom."""


class ParityError(CoromError):
    """Vectors differ from the torch reference by more than the tolerance allows."""

    exit_code = 1


class Overloaded(CoromError):  # noqa: N818  # a state of the server, as HTTP's 429 is
    """More texts wait than may wait. Nothing was computed: try again later, or elsewhere."""

    exit_code = 3


class DeadlineExceeded(CoromError, TimeoutError):  # noqa: N818  # as in gRPC
    """The answer did not come in time. What still waited then is not computed."""

    exit_code = 3


class WorkerError(CoromError):
    """The thread that executes batches ended before it had the answer; another took its place."""

    exit_code = 3


class UnavailableError(CoromError):
    """A backend, device, precision or package was asked for and is not here."""

    exit_code = 3


class EngineError(UnavailableError):
    """An engine, or a fused graph on a GPU, cannot be opened or failed to run."""


class EngineMismatchError(EngineError):
    """No engine of the bundle is for this machine; none is broken."""


class CudaError(UnavailableError):
    """A CUDA call failed. ``fatal``: every later call of this process on the device fails too."""

    def __init__(self, message: str, *, fatal: bool = False) -> None:
        super().__init__(message)
        self.fatal = fatal


class DeviceMemoryError(CudaError):
    """The device has too little free memory; what already runs is not affected."""


def closed_encoder() -> CoromError:
    """Return the error for a call of an encoder that was closed."""
    return CoromError("this encoder is closed. Open a new one: Encoder(bundle).")


def missing_extra(package: str, extra: str, needed_for: str) -> UnavailableError:
    """Return the error for a package that is not installed, with the pip line that installs it."""
    return UnavailableError(
        f"{needed_for} needs the package {package}, which is not installed. "
        f"Run: pip install 'corom[{extra}]'"
    )
