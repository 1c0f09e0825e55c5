from __future__ import annotations

import pytest

from flask_backend.operations.supervisors import is_same_broker


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("btq://127.0.0.1:11300", "btq://127.0.0.1:11300"),
        ("btq://localhost:11300", "btq://127.0.0.1:11300"),
        ("btq://LOCALHOST", "btq://[::1]:11300"),
        ("btq://127.0.1.1:7", "btq://ip6-localhost:7"),
        ("btq://Broker.example:11300", "btq://broker.example"),
        ("memory://", "memory://"),
    ],
)
def test_one_broker_may_have_two_addresses(one, other):
    assert is_same_broker(one, other)
    assert is_same_broker(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("btq://127.0.0.1:11300", "btq://127.0.0.1:11301"),
        ("btq://127.0.0.1:11300", "btq://192.0.2.1:11300"),
        ("btq://a.example:11300", "btq://b.example:11300"),
        ("btq://localhost.example:11300", "btq://127.0.0.1:11300"),
        ("btq://127.0.0.1:11300", "memory://"),
        ("None", "btq://127.0.0.1:11300"),
    ],
)
def test_other_addresses_are_other_brokers(one, other):
    assert not is_same_broker(one, other)
    assert not is_same_broker(other, one)
