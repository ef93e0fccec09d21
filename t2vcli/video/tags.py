"""What a finished video says of itself: the request as JSON, a comment for people, and the exact rate.

ffmpeg puts tags into mp4, mov and Matroska. Where it does not, they are put in afterwards: into a GIF as comment
blocks (GIF89a, 24), into a WebP as XMP (WebP Container Specification, Metadata), into the first PNG as text (PNG, 11.3.4).
"""

from __future__ import annotations

import json
import os
import re
import struct
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import IO
from xml.sax.saxutils import escape, unescape

from t2vcli.errors import OutputError

METADATA_KEY = "t2v"
RATE_KEY = "t2v_fps"
SOURCE_TYPE_KEY, TOOL_KEY = "digital_source_type", "ai_system_used"
OWN_KEYS = (METADATA_KEY, RATE_KEY, SOURCE_TYPE_KEY, TOOL_KEY, "comment")
MAX_METADATA_BYTES = 1 << 20
MAX_TAGS_BYTES = 8 << 20
"""How much of a stranger's GIF is looked through for comments."""

_SPECIAL = re.compile(r"[=;#\\\n]")
_ESCAPE = r"\\\g<0>"
_RATE = re.compile(r"([1-9]\d{0,6})(?:/([1-9]\d{0,6}))?")


def tags_for(metadata: Mapping[str, object] | None, comment: str) -> dict[str, str]:
    """Returns the tags as they are to be read back. JSON is kept in ASCII, so that nothing on the way can change it."""
    tags: dict[str, str] = {}
    if metadata is not None:
        tags[METADATA_KEY] = json.dumps(dict(metadata), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
        if len(tags[METADATA_KEY]) > MAX_METADATA_BYTES:
            raise OutputError(
                f"the metadata is {len(tags[METADATA_KEY])} bytes and a video of t2v holds at most 1 MiB; shorten the prompt"
            )
    lines = comment.encode("utf-8", "replace").decode().replace("\0", "").splitlines()
    if text := "\n".join(lines).strip():
        # ffmpeg takes a line break after any backslash for an escaped one, even after an escaped backslash
        tags["comment"] = text + " " if text.endswith("\\") else text
    return tags


def tag_file(tags: Mapping[str, str], folder: Path) -> IO[bytes]:
    """Returns an open file in ffmpeg's FFMETADATA1 format: a long prompt does not fit into argv.

    It lies in `folder` without a name, so that it cannot be left behind.
    """
    lines = [f"{_SPECIAL.sub(_ESCAPE, key)}={_SPECIAL.sub(_ESCAPE, value)}\n" for key, value in tags.items()]
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - the caller closes it
    try:
        file.write("".join([";FFMETADATA1\n", *lines]).encode("utf-8", "replace"))
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def rate_in(tags: Mapping[str, str]) -> Fraction | None:
    """Returns the frame rate that t2v wrote down, or None: times rounded to milliseconds do not tell it exactly."""
    found = _RATE.fullmatch(tags.get(RATE_KEY, ""))
    return Fraction(int(found[1]), int(found[2] or 1)) if found else None


def put_in_gif(path: Path, tags: Mapping[str, str]) -> None:
    """Puts the tags, one comment block each, before the first picture of a finished GIF: ffmpeg counts a later one as
    a frame.

    Raises OSError, ValueError for no GIF.
    """
    blocks = bytearray()
    for key, value in tags.items():
        text = (value if key == "comment" else f"{key}={value}").encode("utf-8")
        parts = [text[start : start + 255] for start in range(0, len(text), 255)]
        blocks += _COMMENT + b"".join(bytes([len(part)]) + part for part in parts) + b"\0"
    _put_blocks(path, bytes(blocks))


def put_xmp_in_gif(path: Path, packet: bytes) -> None:
    """Puts XMP before the first picture of a finished GIF. Raises OSError, ValueError for no GIF.

    It is not cut into sub-blocks. Who skips it as if it were comes into the 258 bytes after it, which lead to the end.
    """
    trailer = b"\x01" + bytes(range(255, -1, -1)) + b"\0"
    _put_blocks(path, _APPLICATION + b"\x0bXMP DataXMP" + packet + trailer)


def _put_blocks(path: Path, blocks: bytes) -> None:
    """Puts extensions before the first picture of a GIF, after those that are for the whole of it."""
    with open(path, "r+b") as file:
        if not _skip_gif_header(file):
            raise ValueError(f"{path} is no GIF")
        place = file.tell()
        while (kind := file.read(2)) == _APPLICATION:  # that it loops is looked for right after the palette
            for _ in _sub_blocks(file):
                pass
            place = file.tell()
        if kind[:1] not in (b"!", b","):
            raise ValueError(f"{path} holds no picture")
        _insert(file, place, blocks)


def tags_in_gif(path: Path | str) -> dict[str, str]:
    """Returns the tags that `put_in_gif` put in, and a stranger's comment; what is damaged ends the search."""
    tags: dict[str, str] = {}
    with open(path, "rb") as file:
        for comment in _gif_comments(file):
            key, equals, value = comment.partition("=")
            if equals and key in (METADATA_KEY, RATE_KEY):
                tags.setdefault(key, value)
            else:
                tags.setdefault("comment", comment)
    return tags


_COMMENT, _APPLICATION = b"!\xfe", b"!\xff"


def _gif_comments(file: IO[bytes]) -> Iterator[str]:
    """Yields the comments before the first picture, in order; none that begins after MAX_TAGS_BYTES of extensions."""
    if not _skip_gif_header(file):
        return
    begin = file.tell()
    while file.tell() - begin <= MAX_TAGS_BYTES and (kind := file.read(2))[:1] == b"!":
        text = b"".join(_sub_blocks(file))
        if kind == _COMMENT:
            yield text.decode("utf-8", "replace")


def _skip_gif_header(file: IO[bytes]) -> bool:
    """Returns whether it is a GIF, whose header and palette have been read then."""
    header = file.read(13)
    if len(header) < 13 or not header.startswith(b"GIF"):
        return False
    if header[10] & 0x80:
        file.read(3 << (header[10] & 7) + 1)
    return True


def _sub_blocks(file: IO[bytes]) -> Iterator[bytes]:
    """Yields the pieces of an extension, at most MAX_TAGS_BYTES together."""
    size = 0
    while size <= MAX_TAGS_BYTES and (length := (file.read(1) or b"\0")[0]):
        size += length
        yield file.read(length)


def _insert(file: IO[bytes], place: int, data: bytes) -> None:
    """Puts `data` into an open file at `place`; what lies behind is moved, from the end on."""
    end = file.seek(0, os.SEEK_END)
    while end > place:
        begin = max(place, end - _MOVED_BYTES)
        file.seek(begin)
        piece = file.read(end - begin)
        file.seek(begin + len(data))
        file.write(piece)
        end = begin
    file.seek(place)
    file.write(data)


_MOVED_BYTES = 1 << 20

_XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:t2v="urn:t2v"'
    ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" xmlns:xmp="http://ns.adobe.com/xap/1.0/">'
    "{}</rdf:Description></rdf:RDF></x:xmpmeta>"
)
_ELEMENTS = {
    METADATA_KEY: "<t2v:recipe>{}</t2v:recipe>",
    RATE_KEY: "<t2v:fps>{}</t2v:fps>",
    "comment": '<dc:description><rdf:Alt><rdf:li xml:lang="x-default">{}</rdf:li></rdf:Alt></dc:description>',
}
_ANIMATED, _HAS_XMP = 0x02, 0x04


def put_in_webp(
    path: Path, tags: Mapping[str, str], *, width: int, height: int, fps: Fraction, more_xmp: str = ""
) -> None:
    """Puts the tags into a finished WebP without alpha; one of a single frame becomes an animation, too.

    `more_xmp` are further properties. Raises OSError, ValueError for no WebP.
    """
    elements = "".join(_ELEMENTS[key].format(escape(value)) for key, value in tags.items())
    xmp = _XMP.format(elements + more_xmp).encode("utf-8")
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    header = _chunk(b"VP8X", bytes([_ANIMATED | _HAS_XMP, 0, 0, 0]) + size)
    with open(path, "r+b") as file:
        riff = file.read(30)
        if riff[:4] != b"RIFF" or riff[8:12] != b"WEBP":
            raise ValueError(f"{path} is no WebP")
        if riff[12:16] == b"VP8X":
            file.seek(12)
            file.write(header)
            file.seek(0, 2)
        else:
            file.seek(12)
            delay = round(1000 / fps).to_bytes(3, "little")
            frame = _chunk(b"ANMF", bytes(6) + size + delay + b"\0" + file.read())
            file.seek(12)
            file.write(header + _chunk(b"ANIM", bytes(6)) + frame)
        file.write(_chunk(b"XMP ", xmp))
        end = file.tell()
        file.seek(4)
        file.write(struct.pack("<I", end - 8))


def tags_in_xmp(xmp: str) -> dict[str, str]:
    """Returns the tags that `put_in_webp` put in. It is not read as XML: a stranger's may be of any kind and depth."""
    tags: dict[str, str] = {}
    for key, element in _ELEMENTS.items():
        before, after = element.split("{}")
        _, begins, rest = xmp.partition(before)
        value, ends, _ = rest.partition(after)
        if begins and ends:
            tags[key] = unescape(value)
    return tags


def _chunk(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)


def put_png_text(path: Path, tags: Mapping[str, str]) -> None:
    """Puts the tags into a PNG, as text (iTXt) after its header. Raises OSError, ValueError for no PNG."""
    chunks = bytearray()
    for key, value in tags.items():
        data = b"iTXt" + key.encode("ascii") + b"\0\0\0\0\0" + value.encode("utf-8")
        chunks += struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    with open(path, "r+b") as file:
        header = file.read(33)
        if header[:8] != b"\x89PNG\r\n\x1a\n" or header[12:16] != b"IHDR":
            raise ValueError(f"{path} is no PNG")
        _insert(file, 33, bytes(chunks))
