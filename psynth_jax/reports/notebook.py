"""What the notebooks share: the check that the devices are those of the runtime, and a table of their memory."""

from __future__ import annotations

from pathlib import Path

import jax

from psynth_jax.errors import UserError

_GIB = 2.0**30
_ACCELERATORS = (  # what they are, the extra that JAX needs for them, what the system calls them
    ("TPU", "tpu", ("accel*", "vfio/[0-9]*")),
    ("GPU", "cuda", ("nvidia[0-9]*",)),
)


def check_devices(device_files: Path = Path("/dev")) -> None:
    """Print the devices that JAX sees.

    A notebook runtime that installs another JAX without what its devices need runs everything on the CPU, and warns once in
    a log.

    Args:
      device_files: where the system lists its devices.

    Raises:
      UserError: this machine has a TPU or a GPU, JAX does not see it, and nobody told JAX to take the CPU.
    """
    devices = jax.devices()
    kinds = sorted({device.device_kind for device in devices})
    print(f"{len(devices)} x {', '.join(kinds)} (jax {jax.__version__})")  # noqa: T201
    if devices[0].platform != "cpu" or _chosen_platforms() == "cpu":
        return
    for kind, extra, patterns in _ACCELERATORS:
        if any(any(device_files.glob(pattern)) for pattern in patterns):
            raise UserError(
                f"this runtime has a {kind}, and JAX sees only the CPU: install psynth-jax with its extra {extra}, "
                "restart the session, run again"
            )


def _chosen_platforms() -> str | None:
    """Return the value of JAX_PLATFORMS; None: JAX chooses."""
    chosen: str | None = jax.config.jax_platforms
    return chosen


def memory_table() -> None:
    """Print what each device holds now, and at most held, where the device tells."""
    told = [(device, device.memory_stats()) for device in jax.local_devices()]
    told = [(device, numbers) for device, numbers in told if numbers]
    if not told:
        print("this kind of device does not tell how much memory is used")  # noqa: T201
    for device, numbers in told:
        used, peak = numbers["bytes_in_use"] / _GIB, numbers["peak_bytes_in_use"] / _GIB
        limit = numbers.get("bytes_limit", 0) / _GIB
        print(f"{device}: {used:.2f} GiB used, at most {peak:.2f}, of {limit:.1f}")  # noqa: T201
