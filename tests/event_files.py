"""The events of TensorBoard's files."""

import struct


def masked_crc32c(content):
    """The checksum of TFRecord files: CRC-32C, bit by bit, rotated and offset."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_events(path):
    """The events of a file, whose records are length, its checksum, payload, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    content, start = path.read_bytes(), 0
    while start < len(content):
        length, length_crc = struct.unpack_from("<QI", content, start)
        payload = content[start + 12 : start + 12 + length]
        (crc,) = struct.unpack_from("<I", content, start + 12 + length)
        assert length_crc == masked_crc32c(content[start : start + 8])
        if length < 1000:  # bit by bit it takes its time
            assert crc == masked_crc32c(payload)
        yield Event.FromString(payload)
        start += 16 + length


def shown(folder):
    """{tag: {step: value}} of the files in the order of their names.

    A start of a session drops what there is from its step on; no step of a tag may come twice.
    """
    tags = {}
    for path in sorted(folder.iterdir()):
        for event in read_events(path):
            if event.session_log.status == event.session_log.START:
                for values in tags.values():
                    for step in [step for step in values if step >= event.step]:
                        del values[step]
            for value in event.summary.value:
                values = tags.setdefault(value.tag, {})
                assert event.step not in values
                content = value.image if value.HasField("image") else value.simple_value
                values[event.step] = content
    return tags
