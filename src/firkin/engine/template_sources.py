"""The files that a template begins with: its source's own, another template's, or a source laid on those."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from firkin.engine.layer_uses import LayerKeeping
from firkin.engine.workshop import Built
from firkin.law.capabilities import CapabilityName, Permanent
from firkin.law.driver import LayeringPreparer, RootPreparer
from firkin.law.errors import UnsupportedCapability
from firkin.law.templates import GitSource, TemplateBase, TemplateSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFiles:
    preparer: RootPreparer
    keeping: LayerKeeping

    def check(self, spec: TemplateSpec) -> None:
        """`UnsupportedCapability` for a repository where the preparer knows no layers."""
        if isinstance(spec.source, GitSource) and not isinstance(self.preparer, LayeringPreparer):
            reason = Permanent("templates of this driver hold no repository")
            raise UnsupportedCapability("prepare template", CapabilityName.TEMPLATE_PREPARE, reason)

    async def of(self, spec: TemplateSpec, base: Built | None, into: Path, tell: Callable[[str], None]) -> Built:
        """`base` is what the template below has, for sources that are no root of their own."""
        if base is None:
            return Built(prepared=await self.preparer.prepare(spec, into, tell))
        if isinstance(spec.source, TemplateBase):
            return base
        assert isinstance(self.preparer, LayeringPreparer)  # `check` said so
        with self.keeping.holding(base.prepared.root):
            return replace(base, prepared=await self.preparer.prepare_on(base.prepared, spec, into, tell))
