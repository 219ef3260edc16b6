"""Why a folder is another job's: what it was made with and what is asked for, by option."""

from .errors import InputError
from .shard_manifest import Job


def another_job(folder: str, differences: list[str]) -> InputError:
    """Return the error for a folder of another job."""
    return InputError(
        f"'{folder}' was made by another job: {'; '.join(differences)}. Vectors of two jobs do not "
        "mix: ask for what was found, give another folder, or remove this one."
    )


def differences_of(found: Job, asked: Job) -> list[str]:
    """Return what differs between two jobs, by option; files and bundle may have moved."""

    def contents(job: Job) -> list[tuple[str | None, int | None]]:
        return [(file.sha256, file.size_bytes) for file in job.inputs]

    names = [name for name in Job.__struct_fields__ if name not in {"inputs", "bundle_path"}]
    pairs = ((name, getattr(found, name), getattr(asked, name)) for name in names)
    lines = [
        f"{_OPTIONS.get(name, name)}: found {_word(old)}, asked for {_word(new)}"
        for name, old, new in pairs
        if old != new
    ]
    return lines + (["the input has changed"] if contents(found) != contents(asked) else [])


def _word(value: object) -> object:
    return "nothing" if value is None else value


_NAMED_AS_THEIR_OPTION = (
    *("backend", "device", "dtype", "id_column", "input_format", "max_length", "normalize"),
    *("precision", "prompt_name", "shard_rows", "text_column"),
)
_OPTIONS = {name: f"--{name.replace('_', '-')}" for name in _NAMED_AS_THEIR_OPTION} | {
    "batch_tokens": "--max-batch-tokens",
    "dimension": "--truncate-dim",
    "truncate": "--truncate/--error-on-truncate",
}
