"""Addresses as people write them, and ports of this machine.

Apart from antfarm.net because it needs no gRPC: settings are read, and programs started, before that is loaded.
"""

from __future__ import annotations

import errno
import ipaddress
import re
import socket

from antfarm.errors import InvalidArgument

_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]]+)(?::(?P<port>[0-9]{1,5}))?")


def parse_address(text: str, *, default_port: int | None = None) -> str:
    """`host:port` as given, checked. InvalidArgument with one clear line otherwise. IPv6 hosts stand in brackets."""
    match = _ADDRESS.fullmatch(text.strip())
    port = int(match["port"] or default_port or 0) if match else 0
    if match is None or not 0 < port < 65536:
        raise InvalidArgument(f"address {text!r} is not HOST:PORT, e.g. 127.0.0.1:50051")
    return f"{match['host']}:{port}"


def join_address(host: str, port: int) -> str:
    """`host:port`, with the brackets that an IPv6 host needs."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """True when traffic to or from the host cannot leave this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_wildcard(host: str) -> bool:
    """True when serving on the host means every address of this machine: nobody can be told to connect to it."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        return not host


def is_host(text: str) -> bool:
    """True when the text is a name or an address, without a port, that one can connect to."""
    if ":" in text:
        try:
            ipaddress.IPv6Address(text.strip("[]"))
        except ValueError:
            return False
    found = _ADDRESS.fullmatch(join_address(text, 1))
    return found is not None and not is_wildcard(text)


def own_address() -> str:
    """This machine's address in the direction of all others, the one of its default route; its name when it has none. Sends nothing."""
    for family, anywhere in ((socket.AF_INET, "198.51.100.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as route:
                route.connect((anywhere, 9))
                return str(route.getsockname()[0])
        except OSError:
            continue
    return socket.gethostname()


def reserve(host: str, port: int = 0) -> socket.socket:
    """A port of the host, 0 for a free one, that nobody else is given until it is closed; a program that is told its number can listen on it.

    Linux lets two sockets have one address when both ask for SO_REUSEADDR and the first does not listen; gRPC asks for it. InvalidArgument in one
    line when the port is taken or none, or the host is not ours.
    """
    if not 0 <= port < 65536:
        raise InvalidArgument(f"--port {port}: not a port; take one from 1 to 65535, or 0 for any free one")
    bare = host.strip("[]")
    reserved = socket.socket(socket.AF_INET6 if ":" in bare else socket.AF_INET)
    try:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind((bare, port))
    except OSError as error:
        reserved.close()
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            advice = "--host must be a name or address of this machine"
        elif error.errno == errno.EACCES:
            advice = "choose a --port above 1023"
        else:
            advice = "choose another --port or stop the program that has it"
        raise InvalidArgument(
            f"cannot listen on {join_address(host, port)}: {error.strerror or error}; {advice}"
        ) from None
    return reserved
