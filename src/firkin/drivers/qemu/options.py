"""Options of the microVM driver, as an operator writes them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from firkin.host.guest_kernels import IMAGE, is_kernel
from firkin.law.errors import InvalidReason, InvalidSpec

ACCELERATORS = ("auto", "kvm", "tcg")
_KNOWN = ("kernel", "accelerator", "ready_slots", "ready_machines", "process_images", "egress_trust")


@dataclass(frozen=True, slots=True, kw_only=True)
class QemuOptions:
    """`kernel`: a folder with ``kernel`` (an uncompressed vmlinux, or an arm64 Image), ``modules/`` in the order in
    which they are loaded, and ``release``; by default Debian's cloud kernel is fetched. `accelerator`: ``auto``
    takes KVM if a probe boots under it, else TCG. `ready_machines`: most that are woken ahead of need for each
    template and shape, 0 for none; `process_images`: most images of emulated machines' processes that are kept, 0
    for none. The others are as for the namespaces driver."""

    kernel: str = ""
    accelerator: str = "auto"
    ready_slots: int = 8
    ready_machines: int = 4
    process_images: int = 16
    egress_trust: str = ""

    @classmethod
    def parse(cls, options: Mapping[str, str]) -> QemuOptions:
        """Raises `InvalidSpec` for an unknown name or a value of the wrong kind."""
        unknown = sorted(set(options) - set(_KNOWN))
        if unknown:
            raise _invalid(f"the qemu driver has no option {unknown[0]!r}; it has {', '.join(_KNOWN)}")
        accelerator = options.get("accelerator", "auto")
        if accelerator not in ACCELERATORS:
            raise _invalid(f"accelerator must be one of {', '.join(ACCELERATORS)}")
        kernel = options.get("kernel", "")
        if kernel and not os.path.isfile(os.path.join(kernel, "kernel")):
            raise _invalid(f"kernel names {kernel!r}, in which there is no file 'kernel'")
        if kernel and not is_kernel(Path(kernel) / IMAGE):
            raise _invalid(f"kernel names {kernel!r}, whose file 'kernel' is none that a machine of this type boots")
        try:
            ready = int(options.get("ready_slots", cls().ready_slots))
            woken = int(options.get("ready_machines", cls().ready_machines))
            pictured = int(options.get("process_images", cls().process_images))
        except ValueError:
            raise _invalid("ready_slots, ready_machines and process_images must be whole numbers") from None
        if not 1 <= ready <= 2048 or not 0 <= woken <= 64 or not 0 <= pictured <= 64:
            raise _invalid("ready_slots must be 1…2048, ready_machines and process_images 0…64")
        trust = options.get("egress_trust", "")
        if trust and not os.access(trust, os.R_OK):
            raise _invalid(f"egress_trust names {trust!r}, which cannot be read")
        return cls(
            kernel=kernel,
            accelerator=accelerator,
            ready_slots=ready,
            ready_machines=woken,
            process_images=pictured,
            egress_trust=trust,
        )


def _invalid(detail: str) -> InvalidSpec:
    return InvalidSpec("read driver options", InvalidReason.INVALID_SETTINGS, detail)
