"""Where bfloat16 pays."""

import functools

import torch


@functools.cache
def has_bf16(device: str) -> bool:
    """Whether this device multiplies bfloat16 natively: CUDA's do; of CPUs those with AVX512-BF16, AMX or Arm's."""
    if device.startswith("cuda"):
        return True
    # Older releases of torch tell only of AVX512-BF16, by a private name.
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    told = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(probe() or told.get("amx_bf16") or told.get("bf16"))
