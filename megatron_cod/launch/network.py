"""Host names, addresses and ports on this machine."""

import socket

import psutil

from megatron_cod.errors import UserError
from megatron_cod.launch.counts import whole_number


def port_number(text: str, what: str) -> int:
    """A port. UserError, naming what it is for, for any other text."""
    return whole_number(text, what, 1, 65535)


def without_brackets(host: str) -> str:
    """A host as sockets take it: ``::1`` of ``[::1]``."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def addresses_of(host: str) -> list[str]:
    """The addresses of a name. UserError for one that is not known."""
    try:
        found = socket.getaddrinfo(without_brackets(host), None, proto=socket.IPPROTO_TCP)
    except socket.gaierror as error:
        raise UserError(f"HEAD {host} is not a host name known here ({error.strerror})") from None
    return list(dict.fromkeys(str(info[4][0]) for info in found))


def is_mine(address: str) -> bool:
    """Whether an address is one of this machine's: only such can be bound."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def is_here(host: str) -> bool:
    """Whether a name is this machine's. UserError for one that is not known."""
    return any(map(is_mine, addresses_of(host)))


def holder(port: int) -> str:
    """Who listens on a port of this machine, as far as this user may see."""
    try:
        for one in psutil.net_connections("tcp"):
            if one.laddr and one.laddr.port == port and one.status == psutil.CONN_LISTEN and one.pid:
                command = " ".join(" ".join(psutil.Process(one.pid).cmdline()).split())  # of one line
                return f"by process {one.pid}: {command[:100]}"
    except psutil.Error:
        pass
    return "by a process that this user may not see"
