"""corom's own kernels: found, checked to run on this CPU, and called through their C interface.

The structures mirror those of ``native/encoder.h``.
"""

import ctypes
import os
from collections.abc import Callable
from ctypes import POINTER, Structure, byref, c_float, c_int, c_int64, c_void_p
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from .cpus import cpu_flags, cpu_model
from .errors import InputError, UnavailableError
from .manifest import Pooling, Precision
from .native_weights import COARSE, FINE, NativeWeights
from .preemption import Preemption
from .vectors import Vectors

_AVX512 = ("avx512f", "avx512bw", "avx512dq", "avx512vl")
_AVX2 = ("avx2", "fma")
BUILDS: dict[str, dict[Precision, tuple[str, ...]]] = {
    "avx512": {
        "fp32": _AVX512,
        "bf16": (*_AVX512, "avx512_bf16"),
        "int8-per-token": (*_AVX512, "avx512_vnni"),
    },
    "avx2": {"fp32": _AVX2, "int8-per-token": _AVX2},
}
"""What the kernels are compiled for, the fastest first, and what each precision of it needs of a
CPU, as Linux names it."""
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8-per-token")
"""In the order of ``Precision`` of native/interface.h."""
AMX = {"amx_tile", "amx_int8", "amx_bf16"}
"""What bf16 and int8-per-token are multiplied by, on CPUs that have it."""
INTERFACE = 7
"""Of the functions and structures below; raised with every change of them."""
MOST_THREADS = 1024
_NO_MEMORY, _NOT_ENCODABLE = 1, 2
_AGAIN = "Install corom again, in a checkout of it: pip install --force-reinstall --no-deps ."


def require_native(precision: Precision) -> str:
    """Return the build that executes a precision here, a key of ``BUILDS``.

    Raises ``UnavailableError`` if the kernels are not installed, or this CPU executes none.
    """
    flags = cpu_flags()
    needs = {name: of[precision] for name, of in BUILDS.items() if precision in of}
    here = [name for name, needed in needs.items() if flags.issuperset(needed)]
    if not here:
        needed = list(needs.values())[-1]  # the least that does
        missing = [flag for flag in needed if flag not in flags]
        raise UnavailableError(
            f"this CPU ({cpu_model()}) has no {', '.join(missing)}, or does not tell: backend "
            f"'native' needs {', '.join(needed)} for {precision}. Take another backend, or "
            "another precision."
        )
    installed = [name for name in here if find_spec(_module(name)) is not None]
    if not installed:
        raise UnavailableError(
            "this installation has no kernels for backend 'native': they are compiled when corom "
            "is installed on Linux on x86-64 by g++ from version 11 on (with binutils from 2.36), "
            f"or clang++. Install one (Debian: apt install g++). {_AGAIN}"
        )
    _library(installed[0])
    return installed[0]


def _module(build: str) -> str:
    return f"corom.runtime._native_{build}"


def native_executes(precision: Precision) -> bool:
    """Say whether ``require_native`` has nothing against it."""
    try:
        require_native(precision)
    except UnavailableError:
        return False
    return True


class _Linear(Structure):
    _fields_ = [("weight", c_void_p), ("bias", c_void_p)]


class _Norm(Structure):
    _fields_ = [("weight", c_void_p), ("bias", c_void_p), ("smoothing", c_void_p)]


_LAYER: dict[str, type[Structure]] = {
    "attention.query": _Linear,
    "attention.key": _Linear,
    "attention.value": _Linear,
    "attention.output": _Linear,
    "inner": _Linear,
    "outer": _Linear,
    "attention_norm": _Norm,
    "output_norm": _Norm,
}


class _Layer(Structure):
    _fields_ = list(_LAYER.items())


class _Activation(Structure):
    _fields_ = [("coarse", c_void_p), ("fine", c_void_p)]


class _Model(Structure):
    _fields_ = [
        ("vocabulary", c_int64),
        ("positions", c_int64),
        ("width", c_int64),
        ("inner_width", c_int64),
        ("mean_pooled", c_int64),
        ("attends_in_bf16", c_int64),
        ("uses_amx", c_int64),
        ("epsilon", c_float),
        ("activation", _Activation),
        ("words", c_void_p),
        ("position_table", c_void_p),
        ("norm", _Norm),
    ]


@cache
def _library(build: str) -> ctypes.CDLL:
    spec = find_spec(_module(build))
    assert spec is not None
    assert spec.origin is not None
    try:
        library = ctypes.CDLL(spec.origin)
    except OSError as error:  # compiled for another C library
        raise UnavailableError(f"backend 'native' cannot be loaded: {error}. {_AGAIN}") from None
    interface = getattr(library, "corom_interface", None)
    if interface is None or interface() != INTERFACE:
        raise UnavailableError(f"the kernels of backend 'native' are of another corom. {_AGAIN}")
    for name, result, arguments in (
        ("corom_ask_for_amx", c_int, []),
        ("corom_encoder", c_void_p, [POINTER(_Model), c_int]),
        ("corom_add_layer", c_int, [c_void_p, POINTER(_Layer)]),
        ("corom_free_encoder", None, [c_void_p]),
        ("corom_runner", c_void_p, [c_void_p, c_int]),
        ("corom_free_runner", None, [c_void_p]),
        ("corom_run", c_int, [*[c_void_p] * 3, c_int, c_int, *[c_void_p] * 3]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class NativeEncoder:
    """Weights as the kernels take them in one precision; freed with the last reference.

    Raises ``UnavailableError`` without the kernels, and ``MemoryError``.
    """

    def __init__(self, weights: NativeWeights, precision: Precision, pooling: Pooling) -> None:
        self.library = _library(require_native(precision))
        sizes, arrays = weights.sizes, weights.arrays
        words, positions = arrays["embeddings.words.weight"], arrays["embeddings.positions"]
        self._tables = (words, positions)  # used where they are
        self.dimension = sizes.hidden
        model = _Model(
            vocabulary=sizes.words,
            positions=sizes.positions,
            width=sizes.hidden,
            inner_width=sizes.inner,
            mean_pooled=pooling == "mean",
            # Faster, and hardly farther off: the products around it are rounded as much or more.
            # The build for AVX2 has neither bf16 nor AMX, and does without whatever the CPU says.
            attends_in_bf16=precision != "fp32" and "avx512_bf16" in cpu_flags(),
            uses_amx=precision != "fp32"
            and cpu_flags() >= AMX
            and self.library.corom_ask_for_amx(),
            epsilon=weights.epsilon,
            activation=_Activation(*(_address(weights.activation[d]) for d in (COARSE, FINE))),
            words=_address(words),
            position_table=_address(positions),
            norm=_part(_Norm, arrays, "embeddings.norm"),
        )
        number = PRECISIONS.index(precision)
        self.handle = self.library.corom_encoder(byref(model), number)
        if self.handle is None:
            raise MemoryError
        for index in range(sizes.layers):
            layer = _Layer(
                *(_part(kind, arrays, f"layers.{index}.{name}") for name, kind in _LAYER.items())
            )
            if self.library.corom_add_layer(self.handle, byref(layer)):
                raise MemoryError

    def __del__(self) -> None:
        if getattr(self, "handle", None) is not None:
            self.library.corom_free_encoder(self.handle)


class NativeRunner:
    """Threads that execute one batch at a time, with the memory that this takes."""

    def __init__(self, encoder: NativeEncoder, threads: int) -> None:
        self._library = encoder.library
        self._encoder = encoder
        self._process = os.getpid()
        self._handle = None
        if threads <= MOST_THREADS:
            self._handle = self._library.corom_runner(encoder.handle, threads)
        if self._handle is None:
            raise UnavailableError(
                f"no {threads} threads can be started here. Ask for fewer: threads=1 (--threads 1)."
            )

    def run(
        self,
        input_ids: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
        preemption: Preemption | None = None,
    ) -> Vectors:
        """Return the vectors (B, H) of ids (B, S) of which the first ``lengths`` (B,) count.

        ``preemption``: what may put the batch aside, unless several threads execute it. Raises
        ``InputError`` for ids that the model has no vector for, and ``MemoryError``.
        """
        input_ids = np.ascontiguousarray(input_ids, np.int64)
        lengths = np.ascontiguousarray(lengths, np.int64)
        rows, width = input_ids.shape
        vectors = np.empty((rows, self._encoder.dimension), np.float32)
        flag, call = (None, None) if preemption is None else preemption.for_kernels()
        failed = self._library.corom_run(
            self._handle,
            input_ids.ctypes.data,
            lengths.ctypes.data,
            rows,
            width,
            vectors.ctypes.data,
            flag,
            call,
        )
        if failed == _NO_MEMORY:
            raise MemoryError
        if failed == _NOT_ENCODABLE:
            raise InputError("a text has token ids or a length that the model does not have.")
        return vectors

    def __del__(self, getpid: Callable[[], int] = os.getpid) -> None:  # os is gone at the very end
        # In a forked process there are no threads that could be waited for.
        if getattr(self, "_handle", None) is not None and getpid() == self._process:
            self._library.corom_free_runner(self._handle)


def _part(kind: Any, arrays: dict[str, Vectors], name: str) -> Any:  # noqa: ANN401
    """Return a structure with the addresses of what there is; array_shapes says what is not."""
    fields = {field: arrays.get(f"{name}.{field}") for field, _ in kind._fields_}
    return kind(**{field: _address(found) for field, found in fields.items() if found is not None})


def _address(array: Vectors) -> int:
    address: int = array.ctypes.data
    return address
