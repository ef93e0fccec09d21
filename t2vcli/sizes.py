"""Amounts of memory as people write them ("6GiB", "512 MiB", "4.5G"), and of files as disks and networks count them ("3.67 GB")."""

from __future__ import annotations

import re

KIB, MIB, GIB = 2**10, 2**20, 2**30

_UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "K": KIB,
    "KIB": KIB,
    "M": MIB,
    "MIB": MIB,
    "G": GIB,
    "GIB": GIB,
    "T": 2**40,
    "TIB": 2**40,
}
_SOLD = re.compile(r"\s*([0-9]{1,6}(?:\.[0-9]{1,9})?)\s*GB\s*", re.IGNORECASE)
_SIZE = re.compile(r"\s*([0-9]{1,16}(?:\.[0-9]{1,9})?)\s*([A-Za-z]{1,3})\s*")
MOST_BYTES = 2**50

DRIVER_KEEPS = 0.05
"""Of a GPU's memory, at the most where it has no ECC: torch reports 7.75 GiB of an "8 GB" RTX 4060, 5.77 of a "6 GB" RTX 4050,
15.61 of a "16 GB" RTX A4000 (users' reports of torch.OutOfMemoryError on Linux)."""


def parse_size(value: object) -> int:
    """Returns bytes from "6GiB", "512MiB", "6GB" (10**9) or "6G" (GiB). A bare number has no unit and is refused.

    Raises ValueError with what is wrong, for a sentence that begins with the option's name.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        size = float(value)  # bytes, as a recipe or a program gives them
    else:
        text = str(value)
        match = _SIZE.fullmatch(text)
        if match is None or match[2].upper() not in _UNITS:
            bare = re.fullmatch(r"\s*[0-9.]{1,15}\s*", text)
            raise ValueError(
                f"has no unit; write {text.strip()}GiB or {text.strip()}MiB"
                if bare
                else "is not an amount of memory; write it as 6GiB, 512MiB or 6GB"
            )
        size = float(match[1]) * _UNITS[match[2].upper()]
    if not 1 <= size <= MOST_BYTES:
        raise ValueError("must be more than 0" if size < 1 else "is more than any machine has")
    return int(size)


def sold_as(gigabytes: float) -> int:
    """Returns how many bytes a GPU sold as one of so many "GB" has for programs: GiB, less what the driver keeps."""
    return int(gigabytes * GIB * (1 - DRIVER_KEEPS))


def parse_card_size(value: object) -> int:
    """Returns the bytes of a GPU's memory: of "8GB" what a card sold as that has, else as `parse_size`. Raises ValueError."""
    sold = _SOLD.fullmatch(str(value))
    return parse_size(sold_as(float(sold[1])) if sold else value)


def size_text(size: float) -> str:
    """Returns "3.42 GiB" or "512 MiB"."""
    if size >= GIB:
        return f"{size / GIB:.2f} GiB"
    if size >= MIB:
        return f"{size / MIB:.0f} MiB"
    return f"{size / KIB:.0f} KiB"


def bytes_text(count: int) -> str:
    """Returns "3.67 GB", "681 MB", "12 kB" or "384 bytes"."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            value = count / unit
            return (
                f"{value:.2f} {name}" if value < 10 and name == "GB" else f"{value:.{1 if value < 10 else 0}f} {name}"
            )
    return f"{count} bytes"
