"""What the GPU kernels ask of a device: whether it runs them, and what their tiles must fit."""

from __future__ import annotations

import dataclasses

import jax

CORES = 132  # streaming multiprocessors of an H100: the answer when no GPU is there to ask
SHARED_BYTES = 99 << 10  # the least that a thread block may use on Ampere and later
OLDEST = 8.0  # compute capability: Ampere, the first with bfloat16 and asynchronous copies


@dataclasses.dataclass(frozen=True)
class Device:
    """What matters of a GPU.

    cores: multiprocessors.  shared_bytes: of shared memory, that a thread block may use.
    """

    cores: int = CORES
    shared_bytes: int = SHARED_BYTES


def local_device() -> Device:
    """Ask the first device; the defaults when it is no GPU."""
    device = jax.local_devices()[0]
    if device.platform != "gpu":
        return Device()
    cores = getattr(device, "core_count", None)
    shared_bytes = getattr(device, "shared_memory_per_block_optin", None)
    return Device(cores or CORES, shared_bytes or SHARED_BYTES)


def too_old() -> str | None:
    """Say what GPU the first device is, if Triton's kernels are not known to run on it.

    None: they are, or the device is no GPU.
    """
    device = jax.local_devices()[0]
    capability = str(getattr(device, "compute_capability", ""))
    if device.platform != "gpu" or (capability.replace(".", "").isdecimal() and float(capability) >= OLDEST):
        return None
    return f"a {device.device_kind}; it takes NVIDIA GPUs of compute capability {OLDEST} or newer"
