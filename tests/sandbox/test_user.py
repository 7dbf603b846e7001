"""Who programs run as."""

from __future__ import annotations

import os

import pytest

from psynth_jax.errors import SandboxError
from psynth_jax.sandbox import kernel, user

pytestmark = pytest.mark.skipif(not hasattr(os, "setresuid"), reason="user ids are Linux's")


def test_another_user_stays_who_he_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    assert user.choose() == user.User(1234, dropped=False)


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Act as root that has these capabilities, which the test may change."""
    held = set(range(41))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(kernel, "has_capabilities", lambda *wanted: held.issuperset(wanted))
    return held


def test_root_becomes_somebody_else_each_time(as_root: set[int]) -> None:
    drawn = [user.choose() for _ in range(4)]
    ids = {each.uid for each in drawn}
    assert len(ids) > 1
    assert min(ids) >= 60_578
    assert {(each.dropped, each.capabilities) for each in drawn} == {(True, 0)}


def test_root_keeps_what_reads_a_closed_python(as_root: set[int]) -> None:
    assert user.choose("/closed/python").capabilities == 1 << kernel.CAP_DAC_READ_SEARCH


def test_root_that_cannot_drop_is_refused(as_root: set[int]) -> None:
    as_root -= {kernel.CAP_SETUID, kernel.CAP_KILL}
    with pytest.raises(SandboxError) as raised:
        user.choose()
    told = "root without CAP_KILL, CAP_SETUID cannot become another user; start as one"
    assert str(raised.value) == told


def test_root_that_cannot_share_python_is_refused(as_root: set[int]) -> None:
    as_root.discard(kernel.CAP_DAC_READ_SEARCH)
    with pytest.raises(SandboxError, match="cannot read /closed/python; install Python where"):
        user.choose("/closed/python")


@pytest.mark.parametrize(
    ("mapped", "drawn"),
    [({(0, 65_536)}, range(60_578, 61_184)), ({(0, 4_294_967_295)}, range(1_879_048_192, 1 << 31))],
)
def test_an_id_is_one_that_is_mapped(
    monkeypatch: pytest.MonkeyPatch, as_root: set[int], mapped: set[tuple[int, int]], drawn: range
) -> None:
    monkeypatch.setattr(user, "_mapped_ids", lambda kind: mapped)
    assert user.choose().uid in drawn


def test_no_id_is_mapped(monkeypatch: pytest.MonkeyPatch, as_root: set[int]) -> None:
    monkeypatch.setattr(user, "_mapped_ids", lambda kind: {(0, 1)})
    with pytest.raises(SandboxError, match="map 60578 to 61183 into the container"):
        user.choose()
