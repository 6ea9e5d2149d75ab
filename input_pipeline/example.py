"""tf.train.Example, what a record holds, read without TensorFlow: its message described to the `protobuf` package.

An Example is a map from keys to lists of bytes, of float32 or of int64; on the wire a map is a list of entries.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

_FIELD = descriptor_pb2.FieldDescriptorProto
_ONE, _MANY = _FIELD.LABEL_OPTIONAL, _FIELD.LABEL_REPEATED
# Messages by name, their fields in the order of their numbers: (name, label, type, or the message that it holds).
_MESSAGES = {
    "BytesList": [("value", _MANY, _FIELD.TYPE_BYTES)],
    "FloatList": [("value", _MANY, _FIELD.TYPE_FLOAT)],
    "Int64List": [("value", _MANY, _FIELD.TYPE_INT64)],
    "Feature": [("bytes", _ONE, "BytesList"), ("floats", _ONE, "FloatList"), ("integers", _ONE, "Int64List")],
    "Entry": [("key", _ONE, _FIELD.TYPE_STRING), ("value", _ONE, "Feature")],
    "Features": [("feature", _MANY, "Entry")],
    "Example": [("features", _ONE, "Features")],
}


@functools.cache
def _example() -> type:
    """The class of an Example, in a pool of its own, so that TensorFlow may be there as well."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="records", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field, label, kind) in enumerate(fields, 1):
            if isinstance(kind, str):
                kind, holds = _FIELD.TYPE_MESSAGE, {"type_name": f".records.{kind}"}
            else:
                holds = {}
            message.field.add(name=field, number=number, label=label, type=kind, **holds)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("records.Example"))


def parse(payload: bytes) -> Mapping[str, Sequence]:
    """Decodes an Example.

    Args:
        payload: of a record.

    Returns:
        By key a sequence of bytes, of floats (float32 values) or of ints; empty where the example has no values.

    Raises:
        ValueError: it is not a tf.train.Example.
    """
    try:
        entries = _example().FromString(payload).features.feature
    except DecodeError as error:
        raise ValueError("it is not a tf.train.Example") from error
    values = {}
    for entry in entries:
        feature = entry.value
        kind = next((kind for kind in ("bytes", "floats", "integers") if feature.HasField(kind)), None)
        values[entry.key] = getattr(feature, kind).value if kind else ()
    return values
