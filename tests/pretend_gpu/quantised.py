"""4-bit weights are unpacked by bitsandbytes' CPU backend in place of its CUDA kernels."""

from typing import Any

from tests.pretend_gpu.hooks import after_import, put


@after_import("unsloth.kernels.utils")
def unpack_on_the_cpu(module: Any) -> None:
    import torch

    unpack = module.bnb_functional.dequantize_4bit
    other = module.fast_dequantize

    def weight_of(packed: Any, state: Any, out: Any = None) -> Any:
        data = packed.data if isinstance(packed, torch.nn.Parameter) else packed
        if data.shape[0] == 1:  # packed along the other side
            return unpack(data.t(), state).t()
        weight = unpack(data, state)
        return weight if out is None else out.copy_(weight)

    def fast_dequantize(
        W: Any,
        quant_state: Any = None,
        out: Any = None,
        use_global_buffer: bool = False,
        dtype: Any = None,
    ) -> Any:
        if quant_state is None:
            return W
        if getattr(quant_state, "quant_type", None) != "nf4":
            return other(W, quant_state, out, use_global_buffer, dtype)
        return weight_of(W, quant_state, out)

    def fast_gemv(X: Any, W: Any, quant_state: Any, out: Any = None, *_: Any, **__: Any) -> Any:
        if quant_state is None:
            return torch.matmul(X, W, out=out)
        packed = W.t() if W.shape[0] == 1 else W
        product = X @ unpack(packed, quant_state).to(X.dtype).t()
        return product if out is None else out.copy_(product)

    put(module, "fast_dequantize", fast_dequantize)
    put(module, "fast_gemv", fast_gemv)
    put(module, "_bnb_gemm_4bit_ok", lambda *_, **__: False)
    put(module, "_USE_NF4_KERNELS", False)
    put(module, "_gemv_rows_cap", lambda *_, **__: 0)
