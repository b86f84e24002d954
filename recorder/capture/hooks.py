"""Hooks that capture every attention call of a pipeline's denoisers, without changing one bit of its images.

A TorchFunctionMode is on only inside the chosen attention modules; forward hooks say which module runs, on what grid, and
which projection the values of a call came from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from threading import get_ident
from typing import Any, Final

from torch import Tensor, nn

from ...schema.errors import UnsupportedModel
from ...schema.messages import option
from ..encoding.scores import default_scale
from .call import Call, Change, Listener
from .mode import Census, FollowingMode, Mode
from .modules import adapter_scale, is_self_attention, is_single_stream, other_attention, strip
from .projected import Factors, projects_attention
from .projections import CallKey, Outputs, Projections
from .resampler import resampler_of, watch_resampler

_on_now: Final[list[Capture]] = []


def is_captured(roots: Mapping[str, nn.Module]) -> bool:
    """Whether the attention of any of these modules is captured in this thread already."""
    own = {id(root) for root in roots.values()}
    return any(not one._is_elsewhere() and own & {id(root) for root in one._roots.values()} for one in _on_now)


class Capture:
    """Hooks on the chosen attention modules of denoisers, for as long as the context lasts.

    `outside` is for models that are not diffusers' own: all that the modules attend to is told, and where no attention call shows,
    what their projections made stands for it. `shapes_only` is for modules on the meta device, whose values cannot tell where they
    came from. `joins` is for pipelines that join a reference's features to those of self-attention. With `values` calls have their values,
    and the projections that they go out through, and may be told of only when they have been made: a listener cannot change them. With
    `residuals` they have the norm of what their module's output is added to, too.
    """

    def __init__(
        self,
        roots: Mapping[str, nn.Module],
        modules: Mapping[str, nn.Module],
        listener: Listener,
        outside: bool = False,
        shapes_only: bool = False,
        joins: bool = False,
        values: bool = False,
        residuals: bool = False,
    ) -> None:
        self._roots = roots
        self._modules = modules
        self._outside, self._joins = outside, joins
        self._listener = listener
        self._handles: list[Any] = []
        self._projections = Projections()
        self._outputs = Outputs(self._is_wanted, self._tell, self._gives, residuals) if values else None
        seen = self._attend, self._take_softmax if outside else None, None if self._outputs is None else self._outputs.take
        self._mode = FollowingMode(*seen, self._projections.origins) if shapes_only else Mode(*seen)
        self._entered = 0
        self._on = False
        self._thread = 0
        self._shapes: dict[str, tuple[int, int] | None] = {}
        self._path = ""
        self.factors = Factors()
        """Of modules that multiply matrices themselves."""
        self._around = {f"{name}.{strip(inner)}".rstrip("."): part for name, root in roots.items() for inner, part in root.named_modules()}
        """Every module of the denoisers by path."""
        self._calls: list[str] = []
        self._census = Census()

    @property
    def left_out(self) -> list[str]:
        """What attention of other modules reads, beside the places of an image or the frames of a video among themselves."""
        said = []
        for path, (rows, queries, keys) in sorted(self._census.found.items()):
            _, around = self._grid(queries, path)
            area = 0 if around is None else around[0] * around[1]
            if queries != keys or (0 < area < queries and rows % area):
                said.append(f"{path} attends from {queries} tokens to {keys}")
        return said

    def __enter__(self) -> Capture:
        self._thread = get_ident()
        for name, root in self._roots.items():
            self._watch_root(name, root)
        for path, module in self._modules.items():
            if not self._outside and (adapter := resampler_of(path)) is not None:
                self._watch_resampler(path, adapter, module)
            else:
                self._watch_attention(path, module)
        for name, root in self._roots.items() if not self._outside else ():
            others = {path: module for path, module in other_attention(name, root).items() if path not in self._modules}
            for path, module in others.items():
                self._handles.append(module.register_forward_pre_hook(self._shape_hook(path), with_kwargs=True))
                self._handles += self._census.hooks(path, module, lambda: self._is_wanted() and not self._entered)
        _on_now.append(self)
        return self

    def __exit__(self, *exc: object) -> None:
        _on_now.remove(self)
        # torch runs no hook for a KeyboardInterrupt, so the mode may still be on.
        while self._entered:
            self._leave_mode()
        self._census.close()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._projections.forget()
        self.factors.forget()
        with suppress(Exception):  # calls of a module that failed are told of, but what stopped it is what counts
            if self._outputs is not None:
                self._outputs.close()

    @property
    def listens(self) -> bool:
        """Whether what the denoisers compute is wanted now."""
        return self._is_wanted()

    @contextmanager
    def unheard(self) -> Iterator[None]:
        """Keep what modules compute inside from the listener."""
        on, self._on = self._on, False
        try:
            yield
        finally:
            self._on = on

    def _is_elsewhere(self) -> bool:
        """Whether another thread runs, whose pipeline may share modules with the one that is recorded."""
        return get_ident() != self._thread

    def _is_wanted(self) -> bool:
        return self._on and not self._is_elsewhere()

    def _is_inside(self) -> bool:
        return self._entered > 0 and self._is_wanted()

    def _watch_root(self, name: str, root: nn.Module) -> None:
        def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._outside:
                self._thread = get_ident()
            if not self._is_elsewhere():
                self._on = self._listener.begin(name, args, kwargs)

        def end(*_: object) -> None:
            if not self._is_elsewhere():
                self.factors.settle()
                self._settle()
                self._listener.end(name)

        self._handles.append(root.register_forward_pre_hook(begin, with_kwargs=True))
        self._handles.append(root.register_forward_hook(end))
        others = () if self._outside else other_attention(name, root)
        ancestors = {above for path in (*self._modules, *others) for above in _ancestors(path)}
        for path, module in ((f"{name}.{strip(inner)}".rstrip("."), module) for inner, module in root.named_modules()):
            if path in ancestors:
                self._handles.append(module.register_forward_pre_hook(self._shape_hook(path), with_kwargs=True))

    def _shape_hook(self, path: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def see(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._is_wanted():
                tensors = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
                self._shapes[path] = next((_size(tensor) for tensor in tensors if tensor.ndim == 4), None)

        return see

    def _watch_resampler(self, path: str, adapter: int, module: nn.Module) -> None:
        def tell(query: Tensor, key: Tensor, scale: float) -> None:
            call = Call(path=path, projection="to_v", query=query, key=key, scale=scale, grid=(1, query.shape[2]), resampler=adapter)
            self._tell(call)

        self._handles += watch_resampler(module, self._is_wanted, tell)

    def _watch_attention(self, path: str, module: nn.Module) -> None:
        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._is_wanted() and (self._outside or (single and not self._joins) or _has_context(args, kwargs)):
                see(module, args, kwargs)
                if self._outputs is not None:
                    self._outputs.enter(path)
                self._path = path
                self._projections.forget()
                self.factors.begin(path, module, args, kwargs)
                self._mode.worked = False
                self._calls.clear()
                self._mode.__enter__()  # type: ignore[no-untyped-call]
                self._entered += 1

        def leave(_: nn.Module, args: tuple[Any, ...], output: object) -> None:
            if not self._is_inside():
                return
            self._leave_mode()
            # torch calls this with None when forward failed; that error is the one to hear of.
            # A cache hook gives an earlier output again without projecting anything: that call is absent, not hidden.
            cached = not self._projections.ran and hasattr(module, "_diffusers_hook")
            cached = cached or (skips and not self._mode.worked)
            if output is not None and not self._calls and not cached and not self._hear_factors(output, args):
                self._listener.unseen(path, module)
            self._projections.forget()
            self.factors.forget()
            if self._outputs is not None:
                self._outputs.leave(path, output)

        see, single = self._shape_hook(path), is_single_stream(module)
        # One that could attend and multiplies nothing was put there to skip attention, as CatVTON does.
        skips = self._outside and projects_attention(module)
        self._handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        self._handles.append(module.register_forward_hook(leave, always_call=True))
        self._handles += self._projections.hooks(module, self._is_inside)
        self._handles += self.factors.hooks(module, self._is_inside) if self._outside else []
        if self._outputs is not None:
            self._handles += self._outputs.hooks(path, module, self._around.get(path.rpartition(".")[0]))

    def _hear_factors(self, output: object, args: tuple[Any, ...]) -> bool:
        """Tell of attention that no call showed; whether there was any."""
        found = self.factors.read() if self._outside else None
        if found is None:
            return False
        self.factors.check_output(output, args[0] if args else None)
        query, key, scale, mask = found
        grid, around = self._grid(query.shape[2])
        own, known = self._projections.own, None if self._outputs is None else self._outputs.own.get(self._path)
        call = Call(path=self._path, projection="", query=query, key=key, scale=scale, mask=mask, grid=grid, around=around, own=own)
        self._tell(call if known is None else replace(call, value=self.factors.values(), outputs=(known,)))
        return True

    def _tell(self, call: Call) -> None:
        """Tell of attention that was read off projections, or of a call that has been made already: nothing can change these."""
        if self._listener.hear(call) is not None:
            raise UnsupportedModel(
                f"{call.path} is read at its projections, not where it attends, so nothing can be changed there; choose other modules "
                f"through {option('layers')}"
            )

    def _gives(self, given: Any) -> bool:
        """Whether this is what the running module, which calls no attention that shows, takes of its values."""
        return self._outside and self._is_inside() and not self._calls and self.factors.gives(given)

    def _settle(self) -> None:
        if self._outputs is not None:
            self._outputs.settle()

    def _take_softmax(self, scores: Tensor) -> None:
        if not self._calls:
            self.factors.compare(scores)

    def _leave_mode(self) -> None:
        self._entered -= 1
        self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Callable[[Tensor], Tensor] | None:
        if is_causal:
            out = f"leave it out through {option('layers')}"
            raise UnsupportedModel(f"{self._path} attends causally, which no place of an image does; {out}")
        if query.ndim == 3 and self._outside:
            query, key = self.factors.unfold(query, key)
        if query.ndim != 4:
            raise UnsupportedModel(
                f"{self._path} attends with {query.ndim}-D queries; expected (row, head, x, channel); "
                f"leave it out through {option('layers')}"
            )
        # Outside diffusers the caller says what keys are, whatever made them.
        known = () if self._outside else self._projections.segments(self._path, len(self._calls), value)
        segments = known or (("", key.shape[2]),)
        projection = "+".join(name for name, _ in segments)
        repeat, ordinal = self._calls.count(projection), len(self._calls)
        self._calls.append(projection)
        module = self._modules[self._path]
        scale_of_adapter = None if self._outside else adapter_scale(module, projection, repeat)
        call_key, gain = (self._path, projection, repeat), 1.0 if scale_of_adapter is None else scale_of_adapter
        if self._outputs is not None:
            self._outputs.begin(call_key, gain, (query.shape[0], query.shape[1]))
        joined = self._joins and is_self_attention(module)
        if gain == 0 or (joined and key.shape[2] == query.shape[2]):
            return None
        grid, around = self._grid(query.shape[2])
        call = Call(
            path=self._path,
            projection=projection,
            repeat=repeat,
            ordinal=ordinal,
            query=query,
            key=key,
            scale=default_scale(query.shape[-1]) if scale is None else float(scale),
            mask=attn_mask,
            grid=grid,
            around=around,
            parts=tuple(tokens for _, tokens in segments),
            own=self._projections.own,
            joined=joined,
            context=self._projections.input(projection),
            gain=gain,
        )
        value = value if value.ndim == query.ndim else value.unflatten(0, (query.shape[0], -1))  # type: ignore[no-untyped-call]
        return lambda output: self._heard(call_key, call, value, output)

    def _heard(self, key: CallKey, call: Call, value: Tensor, output: Tensor) -> Tensor:
        """Tell of a call that has just been made, and give what stands for its output."""
        if self._outputs is not None:
            self._outputs.hear(key, replace(call, value=value))
            return output
        change = self._listener.hear(call)
        return output if change is None else _changed(change, call, value, output)

    def _grid(self, positions: int, path: str = "") -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
        """The nearest image's rows and columns if they are as many as positions, and what they are anyway."""
        path = path or self._path
        shapes = (self._shapes.get(above) for above in (path, *_ancestors(path)))
        around = next((shape for shape in shapes if shape is not None), None)
        return (around if around is not None and around[0] * around[1] == positions else None), around


def _has_context(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return kwargs.get("encoder_hidden_states") is not None or (len(args) > 1 and args[1] is not None)


def _changed(change: Change, call: Call, value: Tensor, output: Tensor) -> Tensor:
    """What a call gives once it is changed, laid out as it was: outside diffusers its rows and heads may share an axis."""
    rows, heads = call.query.shape[:2]
    changed = change(value, output.reshape(rows, heads, *output.shape[-2:]))
    return output.clone().copy_(changed.reshape(output.shape))


def _size(tensor: Tensor) -> tuple[int, int]:
    return (tensor.shape[2], tensor.shape[3])


def _ancestors(path: str) -> Iterator[str]:
    """Paths above a module, nearest first."""
    while "." in path:
        path = path.rpartition(".")[0]
        yield path
