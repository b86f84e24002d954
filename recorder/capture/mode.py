"""A torch-function mode that shows attention and softmax calls to a function, then runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

ATTENTION: Final = torch._C._nn.scaled_dot_product_attention
PRODUCTS: Final = frozenset({"linear", "matmul", "__matmul__", "bmm", "baddbmm", "einsum", "softmax"})
"""What no module can attend without, under the names of torch's functions."""


class Mode(TorchFunctionMode):
    """Shows each attention call, and what a softmax is taken of, to a function, then runs it."""

    def __init__(self, attend: Callable[..., None], soften: Callable[[Tensor], None] | None = None) -> None:
        super().__init__()
        self._attend, self._soften = attend, soften
        self.worked = False
        """Whether anything was multiplied since this was last set."""

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is ATTENTION:
            self._attend(*args, **kwargs)
        elif self._soften is not None and (name := getattr(func, "__name__", "")) in PRODUCTS:
            self.worked = True
            if name == "softmax":
                self._soften(args[0] if args else kwargs["input"])
        return func(*args, **kwargs)
