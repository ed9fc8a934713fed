"""Modes that record the operations, value reads and tensor sizes of a piece of code."""

from __future__ import annotations

from typing import Any

from torch import Tensor, strided
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


class OperationRecorder(TorchDispatchMode):
    """Records every operation, forward and backward; a cast with its dtypes before and after."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(
        self,
        function: Any,
        types: Any,
        args: Any = (),
        kwargs: Any = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = str(function)
        if name.startswith("aten._to_copy") and kwargs.get("dtype") not in (None, args[0].dtype):
            name = f"{name} {args[0].dtype} {kwargs['dtype']}"
        self.operations.append(name)
        return function(*args, **kwargs)

    @property
    def num_casts(self) -> int:
        return sum(name.startswith("aten._to_copy") for name in self.operations)


class ValueReadRecorder(TorchFunctionMode):
    """Records where Python asks for the values of a tensor, for which a GPU is waited."""

    READS = frozenset(
        {"item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__"}
    )

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []

    def __torch_function__(
        self,
        function: Any,
        types: Any,
        args: Any = (),
        kwargs: Any = None,
    ) -> Any:
        name = getattr(function, "__name__", "")
        if name in self.READS:
            self.reads.append(name)
        return function(*args, **(kwargs or {}))


class LargestTensorRecorder(TorchDispatchMode):
    """Records the number of elements behind the largest tensor that any operation makes."""

    num_elements = 0

    def __torch_dispatch__(
        self,
        function: Any,
        types: Any,
        args: Any = (),
        kwargs: Any = None,
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        tensors = result if isinstance(result, (tuple, list)) else (result,)
        for tensor in tensors:
            if isinstance(tensor, Tensor) and tensor.layout == strided:
                size = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.num_elements = max(self.num_elements, size)
        return result
