"""NVIDIA GPUs that are not there, by the compiler that the CUDA plugin brings (no driver, no GPU)."""

import contextlib
from collections.abc import Sequence
from unittest import mock

import jax

CUDNN = (9, 10)  # its version
# What the compiler asks of a GPU: XLA's GpuTargetConfigProto in text form. The numbers are NVIDIA's.
_TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {optin}
  threads_per_core_limit: 2048
  core_count: {cores}
  fpus_per_core: {fpus}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  l2_cache_size: {cache}
  clock_rate_ghz: {clock}
  device_memory_size: {memory}
  cuda_compute_capability {{ major: {major} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: {cudnn[0]} minor: {cudnn[1]} patch: 0 }}
runtime_version {{ major: 12 minor: 8 patch: 0 }}
device_description_str: "{name}"
"""
_HOPPER = {
    "shared": 233472,
    "optin": 232448,
    "cores": 132,
    "fpus": 128,
    "cache": 52428800,
    "clock": 1.98,
    "major": 9,
}
_AMPERE = {
    "shared": 167936,
    "optin": 166912,
    "cores": 108,
    "fpus": 64,
    "cache": 41943040,
    "clock": 1.41,
    "major": 8,
}
TARGETS = {
    "h100": _HOPPER | {"name": "NVIDIA H100", "memory": 80 * 2**30, "bandwidth": 3350 * 10**9},
    "h200": _HOPPER | {"name": "NVIDIA H200", "memory": 141 * 10**9, "bandwidth": 4800 * 10**9},
    "a100": _AMPERE | {"name": "NVIDIA A100", "memory": 80 * 2**30, "bandwidth": 2039 * 10**9},
}
# Nothing can be timed, so no kernel is chosen by its time.
OPTIONS = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}


def tracing() -> contextlib.AbstractContextManager:
    """While it is entered, JAX traces cuDNN's attention, for which it otherwise asks the GPU's cuDNN."""
    from jax._src.cudnn import fused_attention_stablehlo as attention

    return mock.patch.object(
        attention, "check_cudnn_version", lambda: CUDNN[0] * 10000 + CUDNN[1] * 100
    )


def devices(name: str, count: int) -> Sequence[jax.Device]:
    """So many GPUs of one host, by their name in TARGETS. Raises JaxRuntimeError."""
    from jax._src import xla_bridge
    from jax.experimental import topologies

    jax.devices()  # finds the plugin
    usual = xla_bridge.canonicalize_platform

    def canonical(platform: str) -> str:
        """The usual one knows 'cuda' only where a GPU has been found."""
        return platform if platform == "cuda" else usual(platform)

    with mock.patch.object(xla_bridge, "canonicalize_platform", canonical):
        return topologies.get_topology_desc(
            platform="cuda",
            target_config=_TARGET.format(cudnn=CUDNN, **TARGETS[name]),
            topology=f"1x1x{count}",
        ).devices
