"""The arguments that a pipeline's call takes, as its signature and its code name them. Needs no torch."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from ...schema.errors import InvalidInput
from ...schema.messages import guess


@dataclass(frozen=True, slots=True)
class Arguments:
    """What a pipeline's call takes."""

    names: Collection[str]
    texts: Collection[str] = ()
    """Those that take text, so that 1984 stays a prompt."""
    variadic: bool = False
    """Whether it has `**kwargs`, which would swallow a misspelt name."""
    any_name: bool = False
    """Whether it takes names that cannot be known, as the class of a modular pipeline does without its blocks."""
    needed: Collection[str] = ()
    """Those without a default, in order."""


def arguments_of(pipeline: Any) -> Arguments:
    """What the call of a pipeline, or of a class of them, takes.

    What `**kwargs` are known for stands in the code of the call, in the calls of the classes above, and, in a modular
    pipeline, in its blocks.
    """
    cls = pipeline if inspect.isclass(pipeline) else type(pipeline)
    variadic = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(cls.__call__).parameters.values())
    above = [vars(one)["__call__"] for one in cls.__mro__ if inspect.isfunction(vars(one).get("__call__"))] if variadic else []
    named = [p for call in above or [cls.__call__] for p in _named(call)]
    blocks = getattr(pipeline, "blocks", None)
    taken = {name for call in above for name in _names_of_kwargs(call)} | set(getattr(blocks, "input_names", ()))
    return Arguments(
        names=frozenset({p.name for p in named} | taken),
        texts=frozenset(p.name for p in named if "str" in str(p.annotation)),
        variadic=variadic,
        any_name=variadic and blocks is not None and not hasattr(blocks, "input_names"),
        needed=tuple(p.name for p in _named(cls.__call__) if p.default is p.empty),
    )


def check_arguments(pipeline: Any, call: Iterable[str], options: Collection[str], set_options: Iterable[str]) -> None:
    """Refuse what `record` would hand to a pipeline that swallows it, and options of `record` that the pipeline takes as well.

    Raises   InvalidInput with the nearest name
    """
    known, name = arguments_of(pipeline), type(pipeline).__name__
    meant = {*set_options, *(option for option in options if option in known.needed)}
    if taken := next((option for option in options if option in meant and option in known.names), None):
        raise InvalidInput(
            f"{name} takes an argument {taken}, and record() has an option of that name; keep them apart with "
            f"`with recording(pipeline, path, ...): pipeline({taken}=...)`"
        )
    for given in call if known.variadic and not known.any_name else ():
        if given not in known.names:
            near = guess(given, {*options, *known.names})
            neither = f"{given!r} is neither an option of record() nor an argument of {name}"
            raise InvalidInput(f"{neither}; {near}to pass it all the same, open recording() and call the pipeline in its block")


def _named(call: Any) -> list[inspect.Parameter]:
    parameters = list(inspect.signature(call).parameters.values())[1:]
    return [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]


def _names_of_kwargs(call: Any) -> set[str]:
    """The names that a function takes out of its `**kwargs`."""
    try:
        source = inspect.getsource(inspect.unwrap(call))
    except (OSError, TypeError):  # written in a prompt, or in C
        return set()
    return set(re.findall(r"\bkwargs(?:\.(?:pop|get)\(|\[)\s*[\"'](\w+)", source))
