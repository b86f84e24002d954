"""What a caller says of a model that diffusers does not know: its denoisers, its guidance, and what its keys stand for."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, TypeAlias

from torch import nn

from ...schema.errors import InvalidInput, UnknownSelection
from ...schema.messages import listed
from ...schema.record import BRANCHES, NAME
from ...schema.trace import ROLES, Role, TokenGroup
from ..capture.modules import strip
from ..capture.projected import projects_attention

Grid: TypeAlias = tuple[int, int]

WHOLE: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """One row: a stretch of the keys, and how many there are, if it is not what the other rows leave."""

    name: str
    role: Role
    count: int | None = None
    """Specials included."""
    specials: int = 0
    grid: Grid | None = None
    rows: float | None = None
    """Its rows as a share of those of the layer's own grid; 1 is as many."""
    columns: float | None = None
    """The same of its columns; less than 1 is a panel beside others in every row of the grid."""
    image: str | None = None
    """Name of the picture that the tokens were made from; None is the one of the row's own name, if there is one."""

    @property
    def shared(self) -> bool:
        """Whether it is as large as the layer's own grid says."""
        return self.rows is not None or self.columns is not None

    @classmethod
    def read(cls, row: Any) -> Tokens:
        """A row as the caller wrote it: a name, a mapping or a TokenGroup.

        Raises   InvalidInput
        """
        if isinstance(row, Tokens):
            return row
        if isinstance(row, TokenGroup):
            return cls(name=row.name, role=row.role, count=row.tokens, specials=row.specials, grid=row.grid, image=row.image)
        given = {"name": row} if isinstance(row, str) else dict(row) if isinstance(row, Mapping) else None
        if given is None:
            raise InvalidInput(f"groups: {row!r} is no token group; write {EXAMPLE}")
        if "stop" in given:
            given["count"] = int(given.pop("stop")) - int(given.pop("start", 0))
        unknown = sorted(set(given) - {f.name for f in fields(cls)})
        if unknown or not isinstance(given.get("name"), str):
            what = f"has no field {unknown[0]}" if unknown else "has no name"
            raise InvalidInput(f"groups: {row!r} {what}; a group has {', '.join(f.name for f in fields(cls))}: write {EXAMPLE}")
        return cls(**_sized(given))


EXAMPLE: Final = '{"name": "reference", "specials": 1, "grid": (16, 16)}, or "text" for what is left'


def _sized(given: dict[str, Any]) -> dict[str, Any]:
    """The fields of a row, with what follows from others filled in."""
    name = given["name"]
    if not NAME.fullmatch(name):
        raise InvalidInput(f"groups: the name {name!r} is not made of letters, digits, _ . -")
    role = given.setdefault("role", name.split("_")[0])
    if role not in ROLES:
        raise InvalidInput(f"groups: {name} has role {role!r}; say role={', '.join(ROLES[:-1])} or {ROLES[-1]}")
    if given.get("grid") is not None:
        given["grid"] = _pair(given["grid"], f"groups: {name}")
        rows, columns = given["grid"]
        given.setdefault("count", rows * columns + given.get("specials", 0))
    for axis in ("rows", "columns"):
        share = given.get(axis)
        if share is not None and not (isinstance(share, (int, float)) and share > 0):
            raise InvalidInput(f"groups: {name} has {axis}={share!r}; it is a share of the layer's own {axis}, such as 0.5, or 1 for all")
    if role == "self" and all(given.get(key) is None for key in ("count", "rows", "columns")):
        given["rows"] = WHOLE
    for key in ("count", "specials"):
        number = given.get(key)
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 0):
            raise InvalidInput(f"groups: {name} has {key}={number!r}; expected a number of tokens")
    return given


def _pair(value: Any, where: str) -> Grid:
    pair = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else ()
    if len(pair) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in pair):
        raise InvalidInput(f"{where} has grid {value!r}; expected (rows, columns)")
    return pair


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """All that is said of one model, checked before it runs."""

    model: Any
    denoisers: Mapping[str, nn.Module]
    given: tuple[nn.Module, ...]
    """The denoisers as they were given, in torch.compile's wrapper if they are in one."""
    modules: Mapping[str, nn.Module]
    """Attention modules by path."""
    groups: tuple[tuple[str, tuple[Tokens, ...]], ...] = ()
    """Glob over layer names and its rows; the first that matches counts."""
    grids: tuple[tuple[str, Grid], ...] = ()
    order: tuple[str | None, ...] = ()
    """Branches of the batch's parts, or of successive passes; empty if nothing was said."""
    sequential: bool = False
    """Whether each branch has a pass of its own."""
    evaluations: int | None = None

    def said_of(self, layer: str) -> tuple[tuple[Tokens, ...] | None, Grid | None]:
        """The rows, and the rows and columns, that were said for a layer; None for what was not."""
        rows = next((rows for glob, rows in self.groups if fnmatch.fnmatchcase(layer, glob)), None)
        return rows, next((grid for glob, grid in self.grids if fnmatch.fnmatchcase(layer, glob)), None)

    @property
    def images(self) -> set[str]:
        """Names of pictures that groups are made from."""
        return {row.image for _, rows in self.groups for row in rows if row.image}


def declare(
    model: Any,
    denoisers: Any,
    groups: Sequence[Any] | Mapping[str, Sequence[Any]] | None = None,
    grid: Grid | Mapping[str, Grid] | None = None,
    order: Sequence[str | None] | None = None,
    sequential: bool = False,
    evaluations: int | None = None,
    attention: str | Sequence[str] = (),
) -> Declaration:
    """Check what a caller says of a model; groups and grids are for all layers, or by glob over the layers' names.

    Raises   InvalidInput, UnknownSelection
    """
    named = _roots(model, denoisers)
    roots, given = {name: getattr(root, "_orig_mod", root) for name, root in named.items()}, tuple(named.values())
    further = (attention,) if isinstance(attention, str) else tuple(attention)
    modules = _attention(roots, further)
    if not modules:
        raise UnknownSelection(
            f"{', '.join(roots)} has no module with to_q, to_k and heads (or q_proj, k_proj), so it is not known where it attends; "
            'name the modules that call scaled_dot_product_attention: attention="*.attn"'
        )
    if evaluations is not None and (isinstance(evaluations, bool) or not isinstance(evaluations, int) or evaluations < 1):
        raise InvalidInput(f"evaluations={evaluations!r}; give the number of denoiser evaluations of the run, or leave it out")
    rows = _by_glob([groups] if isinstance(groups, Mapping) and "name" in groups else groups, "groups", _read_rows)
    grids = _by_glob(grid, "grid", lambda value, glob: _pair(value, f"grid: {glob}"))
    for name, globs in (("groups", [glob for glob, _ in rows]), ("grid", [glob for glob, _ in grids])):
        for glob in globs:
            if not fnmatch.filter(modules, glob.partition("#")[0]):
                raise UnknownSelection(f"{name}: {glob!r} matches no attention module; there are {listed(modules)}")
    return Declaration(
        model=model,
        denoisers=roots,
        given=given,
        modules=modules,
        groups=rows,
        grids=grids,
        order=_order(order, sequential),
        sequential=bool(sequential),
        evaluations=evaluations,
    )


def _roots(model: Any, denoisers: Any) -> dict[str, nn.Module]:
    if not isinstance(denoisers, Mapping) or not denoisers:
        raise InvalidInput(f'denoisers={denoisers!r}; name the modules that denoise, such as {{"unet": model.diffusion_model}}')
    roots = {str(name): _root(model, str(name), value) for name, value in denoisers.items()}
    for name, root in roots.items():
        if inside := [other for other, module in roots.items() if other != name and any(module is part for part in root.modules())]:
            raise InvalidInput(f"denoisers: {inside[0]} is a part of {name}, or the same module; name each denoiser once")
    return roots


def _root(model: Any, name: str, value: Any) -> nn.Module:
    """A denoiser; a string is its path from the model."""
    if not NAME.fullmatch(name) or "." in name:
        raise InvalidInput(f"denoisers: the name {name!r} is not made of letters, digits, _ and -; layer paths begin with it")
    found = model if isinstance(value, str) else value
    for part in value.split(".") if isinstance(value, str) else ():
        if not hasattr(found, part):
            raise InvalidInput(f"denoisers: {name} is {value!r}, but {type(found).__name__} has no {part!r}; give the module itself")
        found = getattr(found, part)
    if not isinstance(found, nn.Module):
        raise InvalidInput(f"denoisers: {name} is a {type(found).__name__}, expected a torch module, such as model.diffusion_model")
    return found


def _attention(roots: Mapping[str, nn.Module], further: Sequence[str]) -> dict[str, nn.Module]:
    """Modules that attend, by path; those the caller names must be there."""
    every = {f"{root}.{strip(name)}": module for root, denoiser in roots.items() for name, module in denoiser.named_modules() if name}
    for glob in further:
        if not fnmatch.filter(every, glob):
            raise UnknownSelection(f"attention={glob!r} matches no module; there are {listed(every)}")
    named = {path for glob in further for path in fnmatch.filter(every, glob)}
    if fused := [path for path in named if isinstance(every[path], nn.MultiheadAttention)]:
        raise InvalidInput(
            f"attention: {fused[0]} is a MultiheadAttention, whose fast path cannot be seen without leaving it; leave it out"
        )
    return {path: module for path, module in every.items() if path in named or projects_attention(module)}


def _by_glob(value: Any, name: str, read: Callable[[Any, str], Any]) -> tuple[tuple[str, Any], ...]:
    if value is None:
        return ()
    said = value if isinstance(value, Mapping) else {"*": value}
    if not said or not all(isinstance(glob, str) for glob in said):
        raise InvalidInput(f"{name}={value!r}; write one for all layers, or a mapping of globs over layer names to one each")
    return tuple((glob, read(one, glob)) for glob, one in said.items())


def _read_rows(value: Any, glob: str) -> tuple[Tokens, ...]:
    listed = [value] if isinstance(value, (str, Mapping, TokenGroup)) else value
    if not isinstance(listed, Iterable) or not (rows := tuple(Tokens.read(row) for row in listed)):
        raise InvalidInput(f"groups: {glob} has {value!r}; expected a list of token groups: write {EXAMPLE}")
    names = [row.name for row in rows]
    if len(set(names)) < len(names):
        raise InvalidInput(f"groups: {glob} has two groups of one name among {', '.join(names)}")
    if len([row for row in rows if row.role == "self"]) > 1:
        raise InvalidInput(f"groups: {glob} has several groups of role self; the image that is being made is one")
    left = [row.name for row in rows if row.count is None and not row.shared]
    if len(left) > 1:
        raise InvalidInput(f"groups: {glob} does not say how many tokens {' and '.join(left)} have; only one group can be what is left")
    return rows


def _order(order: Sequence[str | None] | None, sequential: bool) -> tuple[str | None, ...]:
    said = (order,) if isinstance(order, str) else tuple(order or ())
    branches = [name for name in said if name is not None]
    if not set(branches) <= set(BRANCHES) or len(set(branches)) < len(branches) or (said and not branches):
        raise InvalidInput(f'order={order!r}; write ("uncond", "cond") as the parts of the batch stand, None for a part that is neither')
    if sequential and len(said) < 2:
        raise InvalidInput('sequential=True needs the order of the passes: order=("cond", "uncond") if the guided one comes first')
    return said
