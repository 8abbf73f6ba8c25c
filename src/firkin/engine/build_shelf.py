"""Named templates and their builds in memory, found by all that they are asked for by.

Tenants decide how many there are, up to `BuildLimits`: nothing here goes through
what is another tenant's, nor through all builds to find those of one template.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from firkin.law.builds import Build, NamedTemplate


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildLimits:
    """The most that one owner has: names, builds in all and of one name, and tags of one name."""

    names: int = 1_000
    builds: int = 10_000
    builds_of_name: int = 1_000
    tags: int = 1_000


class BuildShelf:
    def __init__(self, named: Iterable[NamedTemplate] = (), builds: Iterable[Build] = ()) -> None:
        self.named: dict[str, NamedTemplate] = {}
        self.builds: dict[str, Build] = {}
        self._called: dict[str, dict[str, None]] = {}  # name → ids
        self._owned: dict[str, dict[str, None]] = {}  # owner → ids, oldest first
        self._of_name: dict[str, dict[str, None]] = {}  # id → ids of builds, oldest first
        self._of_owner: dict[str, dict[str, None]] = {}  # owner → ids of builds, oldest first
        for one in sorted(named, key=lambda one: one.created_at):
            self.put_named(one)
        for build in sorted(builds, key=lambda build: build.created_at):
            self.put(build)

    def put_named(self, named: NamedTemplate) -> None:
        """A new one, or what has become of it; its name and its owner stay."""
        self.named[named.id] = named
        self._called.setdefault(named.name, {})[named.id] = None
        self._owned.setdefault(named.owner, {})[named.id] = None

    def put(self, build: Build) -> None:
        """A new one, or what has become of it."""
        self.builds[build.id] = build
        self._of_name.setdefault(build.template_id, {})[build.id] = None
        named = self.named.get(build.template_id)
        if named is not None:
            self._of_owner.setdefault(named.owner, {})[build.id] = None

    def remove(self, build_id: str) -> None:
        build = self.builds.pop(build_id, None)
        if build is None:
            return
        _take(self._of_name, build.template_id, build_id)
        named = self.named.get(build.template_id)
        if named is not None:
            _take(self._of_owner, named.owner, build_id)

    def remove_named(self, template_id: str) -> None:
        """With all its builds."""
        for build in self.of_name(template_id):
            self.remove(build.id)
        named = self.named.pop(template_id, None)
        if named is not None:
            _take(self._called, named.name, template_id)
            _take(self._owned, named.owner, template_id)

    def called(self, word: str) -> list[NamedTemplate]:
        """Whatever has it as its id or its name, of every owner."""
        ids = dict.fromkeys((word, *self._called.get(word, ())))
        return [self.named[one] for one in ids if one in self.named]

    def owned(self, owner: str) -> list[NamedTemplate]:
        return [self.named[one] for one in self._owned.get(owner, ())]

    def of_name(self, template_id: str) -> list[Build]:
        """Oldest first."""
        return [self.builds[one] for one in self._of_name.get(template_id, ())]

    def of_owner(self, owner: str) -> list[Build]:
        """Oldest first."""
        return [self.builds[one] for one in self._of_owner.get(owner, ())]

    def count_of_name(self, template_id: str) -> int:
        return len(self._of_name.get(template_id, ()))

    def count_of_owner(self, owner: str) -> int:
        return len(self._of_owner.get(owner, ()))

    def untagged(self, builds: Sequence[Build]) -> Iterable[Build]:
        """Those that no tag points to, in the same order."""
        tagged: dict[str, set[str]] = {}
        for build in builds:
            if build.template_id not in tagged:
                named = self.named.get(build.template_id)
                tagged[build.template_id] = {to.build_id for to in named.tags.values()} if named else set()
            if build.id not in tagged[build.template_id]:
                yield build


def _take(index: dict[str, dict[str, None]], key: str, one: str) -> None:
    """Out of the index, with its row when that is empty."""
    row = index.get(key, {})
    row.pop(one, None)
    if not row:
        index.pop(key, None)
