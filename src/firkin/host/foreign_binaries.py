"""The binaries of an agent's bundle for another type of machine: from a tree of files, by what they name.

They cannot be asked what they need, as this machine's are, because they do not run here. Modules in Python are
the same on every machine, so those stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from firkin.host.elf_files import loader_of, needed_by

_FOLDERS = ("lib/*-linux-gnu", "usr/lib/*-linux-gnu", "lib64", "usr/lib64", "lib", "usr/lib")


def exchange_binaries(files: Mapping[str, Path], interpreter: str, version: str, tree: Path) -> Mapping[str, Path]:
    """`files` with all that is no module in Python from `tree`, which has an interpreter of the same `version`.

    What is an extension here but built in there is left out. `ValueError`, `OSError` for a part that `tree` lacks.
    """
    program = tree / "usr/bin" / version
    binaries = {interpreter: program}
    for place in files:
        folder, _, name = place.rpartition("/")
        if folder.endswith("/lib-dynload"):
            modules = sorted((tree / "usr/lib" / version / "lib-dynload").glob(f"{name.partition('.')[0]}.*so"))
            binaries.update((f"{folder}/{module.name}", module) for module in modules[:1])
    loader = loader_of(program).name
    libraries = dict(_closure([*binaries.values(), _found(loader, tree)], tree))
    return {
        **{place: source for place, source in files.items() if place.endswith(".pyc")},
        **binaries,
        **{f"lib/{name}": path for name, path in {**libraries, loader: _found(loader, tree)}.items()},
    }


def _closure(binaries: list[Path], tree: Path) -> Iterator[tuple[str, Path]]:
    seen: set[str] = set()
    while binaries:
        for name in needed_by(binaries.pop()):
            if name not in seen:
                seen.add(name)
                library = _found(name, tree)
                binaries.append(library)
                yield name, library


def _found(name: str, tree: Path) -> Path:
    for folder in _FOLDERS:
        for path in sorted(tree.glob(f"{folder}/{name}")):
            return path
    raise ValueError(f"the library {name} is not in {tree}")
