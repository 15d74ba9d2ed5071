"""The descriptions fit the model and the .proto, so that none of their fields is forgotten."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from ztunnel.model.policy import Authorization, Match
from ztunnel.model.service import Service
from ztunnel.model.workload import Workload
from ztunnel.state import wire
from ztunnel.state.description import AUTHORIZATION, MATCH, SERVICE, WORKLOAD
from ztunnel.state.kinds import Record

ADDRESS = wire.ADDRESS.DESCRIPTOR.fields_by_name
RULE = wire.AUTHORIZATION.DESCRIPTOR.fields_by_name["rules"].message_type
CLAUSE = RULE.fields_by_name["clauses"].message_type

DESCRIBED = [
    (WORKLOAD, Workload, ADDRESS["workload"].message_type, {"extensions"}),
    (SERVICE, Service, ADDRESS["service"].message_type, {"extensions", "ingress_use_waypoint"}),
    (AUTHORIZATION, Authorization, wire.AUTHORIZATION.DESCRIPTOR, {"extensions"}),
    (MATCH, Match, CLAUSE.fields_by_name["matches"].message_type, {"extensions"}),
]


@pytest.mark.parametrize(("record", "model", "message", "ignored"), DESCRIBED)
def test_all_fields_are_described(record: Record, model: Any, message: Any, ignored: set[str]):
    assert {field.name for field in record.fields} == {field.name for field in fields(model)}
    assert {field.wire_name for field in record.fields} | ignored == set(message.fields_by_name)
