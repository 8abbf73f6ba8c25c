"""Attributes that are looked up once before a fork need not be remembered after it.

Python remembers where in a type it found an attribute, and counts a reference to the attribute's name for that. A fork
that looks one up for the first time writes to both places: one of ten pages that an agent has to itself. What imports
looked up is forgotten first, because whatever takes its place would write to the old name too.

Which type a function will meet is not known. So what it names is looked up in all that can be meant: the modules that
it sees, the classes of ours that have such an attribute, the most usual types of Python's.
"""

from __future__ import annotations

import _socket
import sys
from contextlib import suppress
from types import CodeType, FunctionType, ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_USUAL: tuple[object, ...] = ("", b"", [], {}, set(), _socket.socket.__new__(_socket.socket))
_ANSWERS = ("__getattr__", "__getattribute__")
_LOOKS = (FunctionType, type(FunctionType.__globals__), type(str.join))  # to find one of these is no call of anything


def look_up(package: str) -> None:
    """Look up what functions in the modules of `package`, and in the program, name. Runs none of them."""
    modules = [one for name, one in sys.modules.items() if f"{name}.".startswith(("__main__.", f"{package}."))]
    names = {one.__name__ for one in modules}
    seen = [one for module in modules for one in vars(module).values()]
    classes = {one for one in seen if isinstance(one, type) and one.__module__ in names}
    functions = [one for one in seen if type(one) is FunctionType]
    functions += [one for holder in classes for one in vars(holder).values() if type(one) is FunctionType]
    sys._clear_type_cache()
    owners = _owners((*_USUAL, *_instances(classes)))
    for function in functions:
        visible = [one for one in function.__globals__.values() if type(one) is ModuleType]
        for name in _names(function.__code__):
            for owner in (*(one for one in visible if name in vars(one)), *owners.get(name, ())):
                with suppress(AttributeError):  # a place with nothing in it
                    getattr(owner, name)


def _instances(classes: Iterable[type]) -> Iterator[object]:
    """One each, as it is before it begins."""
    for one in classes:
        answers_itself = any(name in vars(kind) for kind in one.__mro__[:-1] for name in _ANSWERS)
        with suppress(TypeError):  # of one that is begun in its own way
            if not answers_itself:
                yield object.__new__(one)


def _owners(instances: Iterable[object]) -> dict[str, list[object]]:
    found: dict[str, list[object]] = {}
    for instance in instances:
        for kind in type(instance).__mro__:
            for name, value in vars(kind).items():
                if isinstance(value, _LOOKS):
                    found.setdefault(name, []).append(instance)
    return found


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for one in code.co_consts:
        if type(one) is CodeType:
            yield from _names(one)
