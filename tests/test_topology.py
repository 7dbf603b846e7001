"""Accelerator types as slices of chips."""

from __future__ import annotations

import pytest

from psynth_jax.errors import UserError
from psynth_jax.topology import CHIPS, tpu_slice


@pytest.mark.parametrize(
    ("name", "kind", "shape"),
    [
        ("v5e-1", "v5e", (1, 1)),
        ("v5e-8", "v5e", (2, 4)),
        ("v5litepod-16", "v5e", (4, 4)),
        ("v5p-8", "v5p", (2, 2, 1)),
        ("v5p-64", "v5p", (2, 4, 4)),
        ("v6e-256", "v6e", (16, 16)),
        ("tpu7x-16", "tpu7x", (2, 2, 2)),
    ],
)
def test_names(name: str, kind: str, shape: tuple[int, ...]) -> None:
    found = tpu_slice(name)
    assert (found.kind, found.shape) == (kind, shape)
    assert found.chip is CHIPS[kind]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v9-8", "'v9-8' is no accelerator type"),
        ("v5e", "no accelerator type"),
        ("v5e-0", "power of two"),
        ("v5e-12", "the number counts chips, and the chips must be a power of two"),
        ("v5p-7", "the number counts cores, 2 a chip"),
    ],
)
def test_others_are_refused(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        tpu_slice(name)


@pytest.mark.libtpu
@pytest.mark.parametrize(("name", "count"), [("v5e-16", 16), ("v5p-64", 32), ("v6e-8", 8), ("tpu7x-8", 8)])
def test_devices(name: str, count: int) -> None:
    devices = tpu_slice(name).devices()
    assert len(devices) == count and {device.platform for device in devices} == {"tpu"}
