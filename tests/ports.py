"""Free ports, for tests whose processes must be told one."""

import socket


def is_free(port: int) -> bool:
    """Whether a server could listen here on all interfaces; ports of connections that are just over count as free."""
    dual = socket.has_dualstack_ipv6()
    try:
        family = socket.AF_INET6 if dual else socket.AF_INET
        with socket.create_server(("", port), family=family, dualstack_ipv6=dual):
            return True
    except OSError:
        return False


def free_port(first: int, most: int = 1000) -> int:
    """The first free port of ``first`` and the following. ValueError where so many in a row are taken."""
    for port in range(first, first + most):
        if is_free(port):
            return port
    raise ValueError(f"no port from {first} to {first + most - 1} is free on {socket.gethostname()}")
