"""Marked as made by AI: IPTC's digital source type, in XMP, where each kind of file has room for it.

    mp4, mov    a `uuid` box at the end (XMP Specification, part 3, 1.1.6), as exiftool writes it
    webp        in the XMP that holds the tags
    gif         an application extension (part 3, 1.1.2)
    png         a text chunk in every picture (part 3, 1.1.5)
    webm, mkv   tags: Matroska has no place for XMP

The values are IPTC's NewsCodes (cv.iptc.org/newscodes/digitalsourcetype).
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from t2vcli import __version__
from t2vcli.errors import InputError
from t2vcli.video.ffmpeg import shown
from t2vcli.video.formats import GIF, MKV, MOV, MP4, PNG, WEBM, Format
from t2vcli.video.pictures import pictures_in
from t2vcli.video.tags import SOURCE_TYPE_KEY, TOOL_KEY, put_png_text, put_xmp_in_gif

_NEWSCODES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
MADE_BY_MODEL = _NEWSCODES + "trainedAlgorithmicMedia"
CHANGED_BY_MODEL = _NEWSCODES + "compositeWithTrainedAlgorithmicMedia"
"""Of a video that a model has enlarged or changed, and that was not made by one."""

TOOL = f"t2v {__version__}"

PROPERTIES = (
    "<Iptc4xmpExt:DigitalSourceType>{}</Iptc4xmpExt:DigitalSourceType>"
    f"<Iptc4xmpExt:AISystemUsed>{TOOL}</Iptc4xmpExt:AISystemUsed><xmp:CreatorTool>{TOOL}</xmp:CreatorTool>"
)
_PACKET = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    f' xmlns:xmp="http://ns.adobe.com/xap/1.0/">{PROPERTIES}</rdf:Description></rdf:RDF></x:xmpmeta>'
)
XMP_KEY = "XML:com.adobe.xmp"
"""The keyword of XMP among the texts of a PNG."""
_XMP_UUID = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
_SEARCHED_BYTES = 4 << 20


def tags_of_mark(kind: Format, source_type: str) -> dict[str, str]:
    """Returns the tags that tell it in a kind that has tags alone."""
    return {SOURCE_TYPE_KEY: source_type, TOOL_KEY: TOOL} if kind in (WEBM, MKV) else {}


def packet_of(source_type: str) -> str:
    """Returns the XMP that tells it."""
    return _PACKET.format(source_type)


def mark(path: Path, kind: Format, source_type: str) -> None:
    """Puts the mark into a finished file, or into each picture of a folder, where it is not in the tags.

    Raises OSError, ValueError for a file of another kind.
    """
    packet = packet_of(source_type).encode()
    if kind in (MP4, MOV):
        with open(path, "ab") as file:
            file.write(struct.pack(">I", 24 + len(packet)) + b"uuid" + _XMP_UUID + packet)
    elif kind is GIF:
        put_xmp_in_gif(path, packet)
    elif kind is PNG:
        for picture in path.iterdir():
            put_png_text(picture, {XMP_KEY: packet.decode()})


def is_marked(path: Path, source_type: str) -> bool:
    """Returns whether a finished file, or the first picture of a folder, holds the mark, near its beginning or its end."""
    if path.is_dir():
        path = min(path.iterdir())
    head, tail = _ends(path)
    return source_type.encode() in head or source_type.encode() in tail


def mark_in(path: Path) -> str | None:
    """Returns the mark of a video, or of the first picture of a folder, None if it has none of ours. Raises InputError."""
    try:
        ends = _ends(pictures_in(path)[0] if path.is_dir() else path)
    except OSError as error:
        raise InputError(f"{shown(path)} cannot be read any more ({error.strerror})") from None
    for source_type in (MADE_BY_MODEL, CHANGED_BY_MODEL):
        if any(source_type.encode() in each for each in ends):
            return source_type
    return None


def _ends(path: Path) -> tuple[bytes, bytes]:
    """Returns the first and the last few megabytes of a file."""
    with open(path, "rb") as file:
        head = file.read(_SEARCHED_BYTES)
        file.seek(max(0, file.seek(0, os.SEEK_END) - _SEARCHED_BYTES))
        return head, file.read()
