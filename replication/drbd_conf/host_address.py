"""`address [ipv4|ipv6] IP:PORT` -> IP and port."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Sequence

from replication.drbd_conf.grammar import Word


def read_address(where: Word, words: Sequence[Word]) -> tuple[str, int]:
    """`words` follow the word `address`; `where` is for messages. IP without brackets, port. Raises ConfigError."""
    family = ""
    if words and not words[0].mark and words[0].text in ("ipv4", "ipv6", "sdp", "ssocks"):
        family, words = words[0].text, words[1:]
    text = "".join(_bare(words))
    remedy = "write address IP:PORT; or address ipv6 [IP]:PORT;"
    if family in ("sdp", "ssocks"):
        raise where.error(f"address family {family} is not supported", remedy)
    match = re.fullmatch(r"\[(?P<six>[^\[\]]+)\]:(?P<port6>[0-9]+)|(?P<four>[0-9.]+):(?P<port4>[0-9]+)", text)
    if match is None:
        raise where.error(f'"{text}" is not an address with a port', remedy)
    try:
        ip = ipaddress.ip_address(match["six"] or match["four"])
    except ValueError as error:
        raise where.error(f'"{match["six"] or match["four"]}" is not an IP address', remedy) from error
    if ip.version != (6 if match["six"] else 4) or (family and family != f"ipv{ip.version}"):
        raise where.error(f'"{text}" is not an address of family {family or "ipv4"}', remedy)
    if ip.version == 6 and not family:
        raise where.error("an IPv6 address wants its family", f"write address ipv6 {text};")
    if ip.is_unspecified or ip.is_multicast:
        raise where.error(f"{ip} is not the address of a host", remedy)
    return str(ip), read_port(where, match["port6"] or match["port4"])


def _bare(words: Iterable[Word]) -> Iterator[str]:
    for word in words:
        if word.quoted:
            raise word.error("an address stands without quotes")
        yield word.text


def read_port(where: Word, text: str) -> int:
    """Raises ConfigError."""
    if not re.fullmatch(r"[0-9]{1,20}", text) or not 1 <= int(text) <= 65535:
        raise where.error(f"port {text[:20]} is out of range", "allowed: 1 to 65535")
    return int(text)
