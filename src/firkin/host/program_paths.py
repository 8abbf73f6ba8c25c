"""Where the outside programs are that are used here. Imported by what must start fast, so it needs little itself."""

from __future__ import annotations

import os
import shutil

from firkin.law.errors import TemplateFault, TemplatePrepareFailure

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def find_program(name: str, *, package: str) -> str:
    """The path of `name`; `TemplatePrepareFailure` that names the Debian package when it is not installed."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":" + PATH)
    if found is None:
        detail = f"{name} is not installed; on Debian: apt-get install {package}"
        raise TemplatePrepareFailure(TemplateFault.TOOL_MISSING, detail)
    return found
