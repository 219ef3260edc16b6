"""What an engine is built for: profiles and the builder's options. Knows no TensorRT."""

from typing import Literal

import msgspec

from corom.runtime.errors import InputError
from corom.runtime.sidecar import Profile

SHORT = 128
"""Tokens up to which the usual profiles go; longer texts get a profile of their own."""


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How engines are built; the ``[engine]`` table of a recipe.

    ``profiles``: none means ``default_profiles``. ``builder_optimization_level``: 0 (fastest build)
    to 5 (fastest engine). ``workspace_bytes``: device memory that one layer may use; None leaves it
    to TensorRT. ``hardware_compatibility``: GPUs that a ``tensorrt`` engine runs on beside the one
    it is built on.
    """

    profiles: tuple[Profile, ...] = ()
    builder_optimization_level: int = 3
    workspace_bytes: int | None = None
    hardware_compatibility: Literal["none", "ampere_plus", "same_compute_capability"] = "none"

    def __post_init__(self) -> None:
        if not 0 <= self.builder_optimization_level <= 5:
            raise InputError(
                f"builder_optimization_level is {self.builder_optimization_level}; it must be 0 "
                "to 5."
            )
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            raise InputError(f"workspace_bytes is {self.workspace_bytes}; it must be at least 1.")


def default_profiles(max_length: int) -> tuple[Profile, ...]:
    """Return a profile for one short text, for interactive batches, for bulk, and for long texts.

    Each is tuned at its middle shape and holds texts of up to ``SHORT`` tokens; the last is there
    only if texts may be longer.
    """
    short = min(SHORT, max_length)
    profiles = [
        _profile("latency", (1, 1, 4), (8, 32, short)),
        _profile("interactive", (1, 8, 32), (8, 64, short)),
        _profile("bulk", (1, 64, 256), (8, 64, short)),
    ]
    if max_length > SHORT:
        profiles.append(_profile("long", (1, 16, 64), (SHORT + 1, 256, max_length)))
    return tuple(profiles)


def chosen_profiles(options: EngineOptions, max_length: int) -> tuple[Profile, ...]:
    """Return the profiles to build; raises ``InputError`` for one that makes no sense."""
    profiles = options.profiles or default_profiles(max_length)
    for profile in profiles:
        for axis, (low, middle, high) in (("batch", profile.batch), ("length", profile.length)):
            if not 1 <= low <= middle <= high:
                raise InputError(
                    f"profile '{profile.name}' has {axis} ({low}, {middle}, {high}); expected "
                    "1 ≤ min ≤ opt ≤ max. Correct the recipe."
                )
        if profile.length[2] > max_length:
            raise InputError(
                f"profile '{profile.name}' has texts of up to {profile.length[2]} tokens, but the "
                f"maximum length is {max_length}. Correct the recipe, or raise --max-length."
            )
    return profiles


def profile_shapes(profile: Profile) -> dict[str, list[tuple[int, ...]]]:
    """Return the (min, opt, max) shapes of each input by name."""
    rows_tokens = list(zip(profile.batch, profile.length, strict=True))
    return {"input_ids": [*rows_tokens], "lengths": [(rows,) for rows in profile.batch]}


def profile_code(profile: Profile) -> str:
    """Return the Python lines that make the profile."""
    lines = [f"profile = builder.create_optimization_profile()  # {profile.name}"]
    for name, shapes in profile_shapes(profile).items():
        lines.append(f'profile.set_shape("{name}", {", ".join(map(str, shapes))})')
    return "\n".join(lines)


def _profile(name: str, batch: tuple[int, int, int], length: tuple[int, int, int]) -> Profile:
    low, middle, high = length
    return Profile(name=name, batch=batch, length=(min(low, high), min(middle, high), high))
