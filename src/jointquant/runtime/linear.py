"""Linears whose input may pass an online Hadamard transform, lose its mean, and be quantized."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from jointquant.backend.launches import LaunchError, remember
from jointquant.backend.products import Linear
from jointquant.quantization.integer import Codes, num_groups
from jointquant.quantization.packed_weight import PackedWeight
from jointquant.quantization.packing import pack, packed_size
from jointquant.quantization.weights import QuantizedWeight, WeightFormat
from jointquant.runtime.inner_rotation import INPUT_ROTATION
from jointquant.runtime.input_path import InputPath
from jointquant.runtime.kernels.interface import Kernel, Problem
from jointquant.runtime.kernels.packed_product import ReadableWeight
from jointquant.runtime.kernels.packed_rows import PackedRows
from jointquant.runtime.kernels.selection import Mode, choose
from jointquant.runtime.site import SharedInput, SiteInput


class OnlineLinear(Linear):
    """A linear with floating-point weights behind an input path.

    Attributes:
        shared: with the linears that read the same input.
    """

    input_mean: Tensor
    input_rotation: Tensor

    def __init__(
        self, in_features: int, out_features: int, bias: bool, path: InputPath, shared: SharedInput | None = None
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.path, self.shared = path, shared or SharedInput()
        for name, buffer in path.buffers(in_features, dtype=self.weight.dtype).items():
            self.register_buffer(name, buffer)

    def arriving(self, x: Tensor) -> Tensor:
        """The input [..., in] as the quantizer sees it."""
        return self.path.arrive(x, dict(self.named_buffers(recurse=False)))

    def read(self, x: Tensor) -> Tensor:
        """The input [..., in] as the product sees it."""
        return self.shared.look(x, self.path, dict(self.named_buffers(recurse=False))).values().view(x.shape)

    def codes(self, x: Tensor) -> Codes:
        """The input [..., in] as integers; ``read`` is what they stand for. The path has a quantizer."""
        buffers = dict(self.named_buffers(recurse=False))
        assert self.path.quantizer is not None
        return self.path.quantizer.encode(self.path.arrive(x, buffers), buffers)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] → [..., out]."""
        read = self.shared.read(x, self.path, dict(self.named_buffers(recurse=False)))
        return super().forward(read.values().view(x.shape))

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        return f"{super().extra_repr()}, {self.path}"


class PackedLinear(nn.Module):
    """A linear with packed weights behind an input path.

    A kernel computes the product. Most read the packed tensors where they are; the form that others need is made when
    they first run, and kept. What is stored and saved are the packed tensors.

    Buffers:
        weight_packed: int32 [out, words], dense along the input dimension.
        weight_scale: [out, groups].
        weight_zero_point: int32 [words, groups], dense along the output dimension; absent for formats that have none.
        input_…: those of the input path.

    Attributes:
        shared: with the linears that read the same input.
        mode: which kernels may run.
        epoch: grows whenever the packed tensors, or the path to them, have changed or moved.
    """

    weight_packed: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        path: InputPath,
        fmt: WeightFormat,
        shared: SharedInput | None = None,
        mode: Mode = "reference",
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self._path, self.fmt = in_features, out_features, path, fmt
        self.shared, self.mode = shared or SharedInput(), mode
        self.epoch = 0
        self._prepared: dict[tuple[str, torch.dtype], Any] = {}
        self._matrices: dict[torch.dtype, Tensor] = {}
        self._chosen: dict[tuple[Mode, int, torch.dtype, bool], Kernel] = {}
        groups, words = num_groups(in_features, fmt), packed_size(in_features, fmt.num_bits)
        self.register_buffer("weight_packed", torch.zeros(out_features, words, dtype=torch.int32))
        self.register_buffer("weight_scale", torch.zeros(out_features, groups, dtype=torch.float32))
        if fmt.has_zero_point:
            rows = packed_size(out_features, fmt.num_bits)
            self.register_buffer("weight_zero_point", torch.zeros(rows, groups, dtype=torch.int32))
        buffers = path.buffers(in_features)
        self._input_names = tuple(buffers)
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer)
        self.bias = nn.Parameter(torch.zeros(out_features), requires_grad=False) if bias else None

    @classmethod
    def of(
        cls,
        weight: QuantizedWeight,
        bias: Tensor | None,
        path: InputPath,
        buffers: Mapping[str, Tensor],
        shared: SharedInput | None = None,
        mode: Mode = "reference",
    ) -> PackedLinear:
        """A linear that holds ``weight``, behind a path that has ``buffers``."""
        out_features, in_features = weight.codes.shape
        linear = cls(in_features, out_features, bias is not None, path, weight.fmt, shared, mode)
        linear.weight_packed = pack(weight.codes, weight.fmt.num_bits)
        linear.weight_scale = weight.scale
        if weight.fmt.has_zero_point:
            linear.weight_zero_point = pack(weight.zero_point, weight.fmt.num_bits, dim=0)
        for name, buffer in buffers.items():
            setattr(linear, name, buffer)
        if bias is not None:
            linear.bias = nn.Parameter(bias, requires_grad=False)
        return linear

    @property
    def path(self) -> InputPath:
        """What happens to the input before the product."""
        return self._path

    @path.setter
    def path(self, path: InputPath) -> None:
        self._path = path
        self._forget()  # kernels were chosen, and weights prepared, for the old one

    def packed_weight(self) -> PackedWeight:
        """The integers, scales and zero points where they are stored."""
        zero_point = self.weight_zero_point if self.fmt.has_zero_point else None
        return PackedWeight(self.weight_packed, self.weight_scale, zero_point, self.in_features, self.fmt)

    def quantized_weight(self) -> QuantizedWeight:
        """The same, unpacked."""
        return self.packed_weight().unpacked()

    def input_buffers(self) -> dict[str, Tensor]:
        """The buffers of the input path."""
        return {name: getattr(self, name) for name in self._input_names}

    def arriving(self, x: Tensor) -> Tensor:
        """The input [..., in] as the quantizer sees it."""
        return self.path.arrive(x, self.input_buffers())

    def read(self, x: Tensor) -> Tensor:
        """The input [..., in] as the reference's product sees it."""
        return self.path(x, self.input_buffers())

    def read_in_place(self, dtype: torch.dtype) -> ReadableWeight | None:
        """The weight as the compiled program reads it for one token of a dtype; None where another kernel is chosen, or
        the program would need the input in another form.
        """
        kernel = self._kernel(torch.empty(1, self.in_features, dtype=dtype, device=self.weight_packed.device))
        if not isinstance(kernel, PackedRows):
            return None
        prepared = self._weight_for(kernel, 1, dtype)
        return prepared.readable if prepared.integers == (self.path.quantizer is not None) else None

    def problem(self, rows: int, dtype: torch.dtype, differentiable: bool = False) -> Problem:
        """What a kernel is asked for an input of some rows and a dtype."""
        quantizer, device = self.path.quantizer, self.weight_packed.device
        sizes = self.in_features, self.out_features
        return Problem(self.fmt, quantizer, *sizes, rows, dtype, device, differentiable)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] → [..., out]."""
        inputs = self.shared.read(x, self.path, self._ready(x.dtype))
        y = self._product(inputs)
        if self.bias is not None:
            y = y.add_(self.bias)
        return y.view(*x.shape[:-1], self.out_features)

    def _product(self, inputs: SiteInput) -> Tensor:
        """[rows, out] by the chosen kernel; where its program cannot be launched, by the next that does it."""
        rows = inputs.rows
        kernel = self._kernel(rows)
        try:
            return kernel.run(inputs, self._weight_for(kernel, len(rows), rows.dtype))
        except LaunchError as error:
            problem = self.problem(len(inputs.rows), inputs.rows.dtype).at_any_length()
            remember(kernel.name, problem, f"a weight [{self.out_features}, {self.in_features}]", error)
            self._forget()
        return self._product(inputs)

    def kernels_used(self) -> list[str]:
        """The names of the kernels that have run."""
        return sorted({kernel.name for kernel in self._chosen.values()})

    def prepared_weights(self) -> dict[tuple[str, torch.dtype], Any]:
        """What kernels keep of the weight, by kernel and dtype of the input."""
        return dict(self._prepared)

    def _kernel(self, x: Tensor) -> Kernel:
        """For rows x [rows, in]."""
        key = self.mode, len(x), x.dtype, torch.is_grad_enabled() and x.requires_grad
        if key not in self._chosen:
            self._chosen[key] = choose(self.problem(*key[1:]), self.mode)
        return self._chosen[key]

    def _weight_for(self, kernel: Kernel, rows: int, dtype: torch.dtype) -> Any:
        """The weight as a kernel reads it."""
        key = kernel.name, dtype
        if key not in self._prepared:
            self._prepared[key] = kernel.prepare(self.packed_weight(), self.problem(rows, dtype))
        return self._prepared[key]

    def _ready(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The buffers of the input path; a learned rotation's as it is applied, which all but the reference keep."""
        buffers, exact = self.input_buffers(), torch.promote_types(dtype, torch.float32)
        if self.path.inner is None or self.mode == "reference":
            return buffers
        if exact not in self._matrices:
            self._matrices[exact] = self.path.inner.ready(buffers[INPUT_ROTATION], exact)
        return buffers | {INPUT_ROTATION: self._matrices[exact]}

    def release_prepared(self) -> None:
        """Let go of what is kept of the weight and of the rotation before it; made anew when the linear runs again."""
        self._prepared.clear()
        self._matrices.clear()

    def _forget(self) -> None:
        """The packed tensors have changed or moved, or another path leads to them."""
        self.epoch += 1
        self.release_prepared()
        self._chosen.clear()

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles hold: all but what is made anew, of which some cannot be copied."""
        return {**self.__dict__, "_prepared": {}, "_matrices": {}, "_chosen": {}}

    def _apply(self, *args: Any, **kwargs: Any) -> PackedLinear:
        self._forget()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._forget()
        super()._load_from_state_dict(*args, **kwargs)

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        used = self.kernels_used()
        kernels = f"kernels={self.mode}" + (f" ({', '.join(used)} used)" if used else "")
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.fmt}, {self.path}, {kernels}"
