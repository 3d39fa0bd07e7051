"""Input that is broken in a thousand ways, the same thousand each time."""

import json
import random
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from segstream.media.images import ImageEncoding, encode_image
from segstream.v1 import segmentation_pb2 as pb
from tests.support.models import make_video
from tests.support.requests import data_request

# Of another size than the session's frames: what decodes all the same is refused for that.
[_IMAGE] = make_video(1, 40, 72, seed=9)
_JPEG, _PNG = (encode_image(_IMAGE, each) for each in (ImageEncoding.JPEG, ImageEncoding.PNG))
_POST = b"POST /v1/images HTTP/1.1\r\nHost: 127.0.0.1\r\n"
_TEXTS = ("", "\0", "../../etc/passwd", "%00%ff", "ä" * 200, "\N{PILE OF POO}" * 40, "a" * 70_000)
_OTHER_FILES = (
    b"GIF89a" + bytes(64),
    b"BM" + bytes(64),
    b"RIFF\xff\xff\xff\x7fWEBPVP8 " + bytes(64),
    b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + b"\xff\xff\xff\xffmoov",
    b"\x1aE\xdf\xa3" + bytes(64),
    b"II*\0" + b"\xff" * 64,
    b"%PDF-1.7",
    b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "ünïcode \N{PILE OF POO}".encode(),
)


def broken_images(rng: random.Random) -> list[bytes]:
    """JPEG and PNG with damaged headers, cut short, huge, or of another kind."""
    images = [damaged(rng, data) for data in (_JPEG, _PNG) for _ in range(110)]
    images += [data[:end] for data in (_JPEG, _PNG) for end in range(1, len(data), len(data) // 30)]
    images += [png_of(rng) for _ in range(110)]
    images += [jpeg_of_size(rng.choice((0, 1, 65_000)), rng.randrange(65_536)) for _ in range(20)]
    images += [png_with_text(20_000_000), png_with_pixels(30_000_000), jpeg_with_scans(5_000)]
    return [*images, *_OTHER_FILES]


def damaged(rng: random.Random, data: bytes, reach: int = 400) -> bytes:
    """Up to eight bytes of the first ones are others; of the ones after the magic, if told."""
    broken = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        broken[rng.randrange(min(len(broken), reach))] = rng.randrange(256)
    return bytes(broken)


def png_of(rng: random.Random) -> bytes:
    """A header with a right checksum and impossible contents."""
    sizes = (0, 1, 40, 72, 16_384, 16_385, 100_000, 2**31 - 1, 2**32 - 1)
    header = struct.pack(
        ">IIBBBBB",
        rng.choice(sizes),
        rng.choice(sizes),
        rng.choice((0, 1, 2, 4, 8, 16, 32)),
        rng.choice((0, 2, 3, 4, 6, 7)),
        rng.choice((0, 0, 1)),
        rng.choice((0, 0, 1)),
        rng.choice((0, 1, 2)),
    )
    return png(header, _chunk(b"IDAT", zlib.compress(rng.randbytes(rng.randrange(100)))))


def png_with_text(num_bytes: int) -> bytes:
    """A comment that grows a thousandfold when it is unpacked."""
    text = _chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(num_bytes)))
    return png(_header(72, 40), text, _chunk(b"IDAT", zlib.compress(bytes(40 * (1 + 3 * 72)))))


def png_with_pixels(num_bytes: int) -> bytes:
    """Far more pixels than the header speaks of."""
    return png(_header(72, 40), _chunk(b"IDAT", zlib.compress(bytes(num_bytes))))


def png(header: bytes, *chunks: bytes) -> bytes:
    parts = (_chunk(b"IHDR", header), *chunks, _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def jpeg_of_size(width: int, height: int) -> bytes:
    data = bytearray(_JPEG)
    size = data.index(b"\xff\xc0") + 5
    data[size : size + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def jpeg_with_scans(count: int) -> bytes:
    """Each scan of a progressive JPEG costs a pass over all its pixels."""
    start = _JPEG.index(b"\xff\xda")
    head = bytearray(_JPEG[:start])
    head[head.index(b"\xff\xc0") + 1] = 0xC2
    return bytes(head) + count * b"\xff\xda\0\x08\x01\x01\0\0\0\0\0" + b"\xff\xd9"


def broken_frames(rng: random.Random) -> Iterator[pb.StreamSegmentRequest]:
    """Frames that cannot be used, after a session's first; each must change nothing."""
    for data in broken_images(rng):
        yield data_request(1, data, rng.choice((0, 0, 1, 2)))
    for _ in range(60):  # the wrong number of bytes, or no size, or one beyond all bounds
        width, height = (rng.choice((0, 1, 72, 16_385, 2**31, 2**32 - 1)) for _ in range(2))
        yield data_request(1, rng.randbytes(rng.randrange(64)), 3, width=width, height=height)
    for encoding in range(4, 44):
        yield data_request(1, _PNG, encoding)
    for _ in range(40):
        size = {name: rng.choice((1, 71, 2**32 - 1)) for name in ("width", "height")}
        yield data_request(1, rng.choice((_JPEG, _PNG)), 0, **size)
    for index in (0, 2**64 - 1):  # answered before; after it there is none
        for time in (-(2**63), 2**63 - 1):
            yield data_request(index, _PNG, timestamp_us=time)


def broken_first_messages(rng: random.Random) -> Iterator[bytes]:
    """What cannot open a session, as it travels."""

    def config(**fields: Any) -> bytes:
        return pb.StreamSegmentRequest(config=pb.SessionConfig(**fields)).SerializeToString()

    good = config(session_id="a", max_working_height=8)
    yield from (b"", pb.StreamSegmentRequest(end_of_frames=pb.EndOfFrames()).SerializeToString())
    yield data_request(0, _PNG).SerializeToString()
    for text in _TEXTS[1:]:
        yield config(session_id=text)
        yield config(model=text)
    for number in (99, 120, 2**31 - 1):
        unknown = struct.pack("B", number) if number < 128 else b"\xff\xff\xff\xff\x07"
        for field in (3, 4, 6):
            inner = bytes((8 * field,)) + unknown
            yield bytes((10, len(inner))) + inner
    yield config(resume=pb.Resume(next_frame_index=2**64 - 1))
    for _ in range(40):
        yield b"\xff" + rng.randbytes(rng.randrange(1, 40))
    yield from (good[:end] for end in range(1, len(good)))


def broken_heads() -> Iterator[Any]:
    """JSON that has an index of a frame, so that the frame is refused and the session goes on."""
    values: tuple[Any, ...] = (-1, 1.5, "x", [], {}, True, 2**80, "\ud800", "1e999")
    for field in ("encoding", "width", "height", "deadline_ms", "is_memorise_only", "timestamp_us"):
        for value in values:
            if (field, value) not in (("is_memorise_only", True), ("timestamp_us", -1)):
                yield {"frame": {"index": 1, field: value}}
    for text in _TEXTS[:-1]:
        yield {"frame": {"index": "1", text or "x": 0}}
    for encoding in range(4, 24):
        yield {"frame": {"index": 1, "encoding": encoding}}


def broken_messages(rng: random.Random) -> Iterator[str | bytes]:
    """WebSocket messages that cannot begin a session."""
    config = json.dumps({"config": {"session_id": "a", "max_working_height": 8}})
    yield from (
        "",
        "null",
        "[]",
        "0",
        '"config"',
        "{}",
        "{" * 5_000,
        "[" * 30_000,
        "NaN",
        "1" * 5_000,
    )
    yield from (config[:end] for end in range(1, len(config), 3))
    for text in _TEXTS[1:]:
        yield json.dumps({"config": {"session_id": text}})
        yield json.dumps({"config": {"model": text}}, ensure_ascii=False)
        yield json.dumps({text: {}})
    numbers: tuple[Any, ...] = (-1, 2**32, 1e300, "x", [], {}, True)
    for value in numbers:
        yield json.dumps({"config": {"max_working_height": value}})
        yield json.dumps({"config": {"resume": value}})
    yield '{"config": {"session_id": "\\ud800"}}'
    yield '{"config": {"model": "\\udfff\\u0000"}}'
    yield from (b"", b"\0", b"\xff\xff\xff\xff{}", b"\0\0\0\x09{}", b"\0\0\0\x02{}", bytes(5_000))
    for _ in range(30):
        yield struct.pack(">I", rng.randrange(80_000)) + rng.randbytes(rng.randrange(60))


def broken_requests(rng: random.Random) -> Iterator[bytes]:
    """What is no HTTP/1.1, or hardly any."""
    yield from (
        b"\0" * 100,
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET  HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nA: " + b"a" * 200_000,
        b"GET /" + b"a" * 200_000,
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20_000,
        _POST + b"Content-Length: -1\r\n\r\n",
        _POST + b"Content-Length: x\r\n\r\n",
        _POST + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n",
        _POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        _POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        _POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 20,
    )
    opening = (
        "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: {version}\r\nSec-WebSocket-Key: {key}\r\n{more}\r\n"
    )
    key = "AAAAAAAAAAAAAAAAAAAAAA=="
    for path, version, given, more in (
        ("/v1/stream", "12", key, ""),
        ("/v1/stream", "x", key, ""),
        ("/v1/stream", "13", "", ""),
        ("/v1/stream", "13", "short", ""),
        ("/v1/stream", "13", key, "Origin: \xff://\r\n"),
        ("/v1/stream", "13", key, "Origin: http://[::1\r\n"),
        ("/v1/stream", "13", key, "Sec-WebSocket-Extensions: ;;;\r\n"),
        ("/v1/stream", "13", key, "".join(f"X-{n}: y\r\n" for n in range(200))),
        ("/v1/stream", "13", key, f"X: {'y' * 9_000}\r\n"),
        ("/v1/nothing", "13", key, ""),
        ("/v1/str\xe9am", "13", key, ""),
    ):
        text = opening.format(path=path, version=version, key=given, more=more)
        yield text.encode("latin-1")
    yield (
        opening.format(path="/v1/stream", version=13, key=key, more="")
        .replace("GET", "POST")
        .encode()
    )
    good = _POST + b"Content-Length: 0\r\n\r\n"
    for _ in range(40):
        yield damaged(rng, good, len(good)) + b"\r\n\r\n"


def _header(width: int, height: int) -> bytes:
    return struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)
