"""Whether weights can be fetched, without waiting for a hub that does not answer."""

import time

import pytest

from tokengraph.io import hub

clients = pytest.importorskip("huggingface_hub")


def test_reachable_gives_up_in_time(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    start = time.monotonic()
    assert not hub.reachable("http://127.0.0.1:9", patience=1.0) and time.monotonic() - start < 3
    assert not hub.reachable("no address at all")


@pytest.mark.parametrize("answers", [True, False])
def test_patient_hub_goes_offline_only_where_the_hub_is_silent_and_asks_once(monkeypatch, answers):
    asked = []
    monkeypatch.setattr(hub, "_ANSWERED", {})
    monkeypatch.setattr(hub, "reachable", lambda address: asked.append(address) or answers)
    monkeypatch.setattr(clients.constants, "HF_HUB_OFFLINE", False)
    for _ in range(2):
        with hub.patient_hub():
            assert clients.constants.HF_HUB_OFFLINE is not answers
        assert clients.constants.HF_HUB_OFFLINE is False
    assert len(asked) == 1


def test_patient_hub_asks_nobody_where_the_user_is_offline(monkeypatch):
    monkeypatch.setattr(hub, "_ANSWERED", {})
    monkeypatch.setattr(hub, "reachable", lambda address: pytest.fail("asked the hub"))
    monkeypatch.setattr(clients.constants, "HF_HUB_OFFLINE", True)
    with hub.patient_hub():
        assert clients.constants.HF_HUB_OFFLINE is True
    assert clients.constants.HF_HUB_OFFLINE is True
