"""Our api.proto against the facts of the published CRI v1: every name, number, type, label, enum value and call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from aircell_cri.v1 import api_pb2

FACTS = json.loads((Path(__file__).parent / "data" / "cri-v1-facts.json").read_text())
FILE = api_pb2.DESCRIPTOR

SCALARS = {
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_DOUBLE: "double",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_UINT64: "uint64",
}


def type_name(field: FieldDescriptor) -> str:
    for kind in (field.message_type, field.enum_type):
        if kind is not None:
            return str(kind.name)
    return SCALARS[field.type]


def described(field: FieldDescriptor) -> str:
    """As the facts write it: ``repeated string servers``, ``map<string, string> labels``."""
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
        return f"map<{type_name(key)}, {type_name(value)}> {field.name}"
    label = "repeated " if field.is_repeated else ""
    return f"{label}{type_name(field)} {field.name}"


def message_facts(message: Descriptor) -> dict[str, str]:
    return {str(field.number): described(field) for field in message.fields}


def enum_facts(enum: EnumDescriptor) -> dict[str, str]:
    return {str(value.number): value.name for value in enum.values}


def test_package() -> None:
    assert FILE.package == FACTS["package"]


def test_messages() -> None:
    assert {name: message_facts(message) for name, message in FILE.message_types_by_name.items()} == FACTS["messages"]


def test_enums() -> None:
    found = {name: enum_facts(enum) for name, enum in FILE.enum_types_by_name.items()}
    for message in FILE.message_types_by_name.values():
        found |= {f"{message.name}.{name}": enum_facts(enum) for name, enum in message.enum_types_by_name.items()}
    assert found == FACTS["enums"]


@pytest.mark.parametrize("service", FACTS["services"])
def test_services(service: str) -> None:
    found: dict[str, Any] = {
        method.name: {
            "request": method.input_type.name,
            "response": method.output_type.name,
            "server_streaming": method.server_streaming,
        }
        for method in FILE.services_by_name[service].methods
    }
    assert found == FACTS["services"][service]
    assert not any(method.client_streaming for method in FILE.services_by_name[service].methods)


def test_no_service_is_missing() -> None:
    assert set(FILE.services_by_name) == set(FACTS["services"])
