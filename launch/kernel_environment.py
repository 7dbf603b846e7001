"""What a notebook's kernel finds in its environment when it is executed here.

Without an accelerator JAX runs on the CPU and has eight devices, so that meshes are real.  Nothing is fetched from the hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

ALWAYS = {"JAX_NUM_CPU_DEVICES": "8", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
ACCELERATORS = ("accel*", "vfio/[0-9]*", "nvidia[0-9]*")  # what the system calls TPUs and GPUs


def kernel_environment(environment: Mapping[str, str], device_files: Path = Path("/dev")) -> dict[str, str]:
    """Return `environment` with what it lacks; what it sets stays."""
    has_accelerator = any(any(device_files.glob(pattern)) for pattern in ACCELERATORS)
    platform = {} if has_accelerator else {"JAX_PLATFORMS": "cpu"}
    return {**ALWAYS, **platform, **environment}
