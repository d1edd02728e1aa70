"""Interfaces: which one the ranks of a machine talk over, whether it is there, and whether the others reach it."""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import psutil

from megatron_cod.errors import UserError
from megatron_cod.preflight.check import Answers, Here
from megatron_cod.preflight.findings import FAIL, OK, WARN, Finding, Outcome
from megatron_cod.preflight.service import Service, ask

GLOO, NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"
_NEIGHBOUR_SECONDS = 15.0


def interface_addresses() -> dict[str, list[str]]:
    """Interface -> its addresses, IPv4 first; link-local ones omitted."""
    found: dict[str, list[str]] = {}
    for name, entries in psutil.net_if_addrs().items():
        wanted = [one.address for one in entries if one.family in (socket.AF_INET, socket.AF_INET6)]
        found[name] = [one for one in wanted if not one.startswith("fe80:")]
    return found


def nccl_takes(setting: str, name: str) -> bool:
    """Whether NCCL would use an interface: names are prefixes, ``=`` makes them whole, ``^`` excludes."""
    exclude, whole = setting.startswith("^"), setting.lstrip("^").startswith("=")
    words = [word for word in setting.lstrip("^").removeprefix("=").split(",") if word]
    matches = any(name == word if whole else name.startswith(word) for word in words)
    return matches != exclude


def own_addresses() -> list[str]:
    """The addresses of this machine's own name."""
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, proto=socket.IPPROTO_TCP)
    except socket.gaierror:
        return []
    return list(dict.fromkeys(str(info[4][0]) for info in found))


def choose(
    variables: Mapping[str, str], interfaces: Mapping[str, list[str]], own: list[str], alone: bool
) -> tuple[str, str]:
    """(interface, address) that gloo would give to the other ranks. UserError, with the reason, where it would fail.

    own: the addresses of the machine's own name. alone: no other machine takes part, so loopback will do.
    """
    present = f"this machine has {', '.join(sorted(name for name, listed in interfaces.items() if listed))}"
    gloo, nccl = variables.get(GLOO), variables.get(NCCL)
    name = gloo.split(",")[0] if gloo else ""
    if gloo and name not in interfaces:
        raise UserError(f"{GLOO}={gloo}: no interface {name}; {present}")
    if gloo and not interfaces[name]:
        raise UserError(f"{GLOO}={gloo}: {name} has no address; {present}")
    if nccl and not any(nccl_takes(nccl, one) for one in interfaces):
        raise UserError(f"{NCCL}={nccl}: no such interface; {present}")
    if gloo:
        return name, interfaces[name][0]
    holders = [(name, one) for one in own for name, listed in interfaces.items() if one in listed]
    outward = [(name, one) for name, one in holders if not ipaddress.ip_address(one.split("%")[0]).is_loopback]
    if outward or (alone and holders):
        return (outward or holders)[0]
    if alone:
        return "lo", "127.0.0.1"
    found = ", ".join(own) or "nothing"
    raise UserError(
        f"the machine's own name leads to {found}, where no other machine finds it: set INTERFACE, or mend it"
    )


def collect(here: Here) -> dict[str, Any]:
    """The interface, and whether the next machine's is reached from here."""
    meeting = here.meeting
    firsts = meeting.firsts
    wrong = unreached = ""
    name = address = None
    try:
        name, address = choose(os.environ, interface_addresses(), own_addresses(), len(firsts) == 1)
        service = Service(address, 0, here.shared["secret"])
        meeting.store.set(f"listens/{meeting.rank}", json.dumps([address, service.port]))
    except (ValueError, OSError) as error:
        wrong = str(error)
        meeting.store.set(f"listens/{meeting.rank}", json.dumps(None))
    place = firsts.index(meeting.me)
    neighbour = firsts[(place + 1) % len(firsts)]
    if neighbour != meeting.me:
        where = meeting.read(f"listens/{neighbour.rank}", time.monotonic() + _NEIGHBOUR_SECONDS)
        try:
            if where and ask(where[0], where[1])[0].secret != here.shared["secret"]:
                unreached = f"another machine answers at {where[0]}"
        except OSError as error:
            unreached = f"{where[0]}: {error.strerror or error}"
    stats = psutil.net_if_stats().get(name or "")
    return {
        "interface": name,
        "address": address,
        "mtu": stats.mtu if stats else None,
        "variables": {key: os.environ.get(key, "") for key in (GLOO, NCCL)},
        "wrong": wrong,
        "neighbour": neighbour.node,
        "unreached": unreached,
    }


def compare(answers: Answers, here: Here) -> Outcome:
    """Fails without an interface, and where the one before cannot reach it; warns of settings and MTUs that differ."""
    unreached = {
        one["neighbour"]: (member.node, one["unreached"]) for member, one in answers.items() if one["unreached"]
    }
    usual = Counter(_setting(one) for one in answers.values()).most_common(1)[0][0]
    findings = []
    for member, one in answers.items():
        state, text, hint = OK, f"{one['interface']} {one['address']}, MTU {one['mtu']}", ""
        if one["wrong"]:
            state, text, hint = FAIL, one["wrong"], "INTERFACE names the network between the machines"
        elif member.node in unreached:
            asker, why = unreached[member.node]
            state, text = FAIL, f"{asker} does not reach it over {one['interface']} ({why})"
            hint = "take the network that the machines share (INTERFACE), and open it between them for all ports"
        elif _setting(one) != usual:
            state, hint = WARN, "most machines have " + _words(usual)
            text = _words(_setting(one))
        findings.append(Finding(member.node, "interfaces", state, text, hint))
    figures = {member.node: one for member, one in answers.items()}
    return Outcome(findings, _words(usual), {"interfaces": figures})


def _setting(answer: Mapping[str, Any]) -> tuple[str, str, Any]:
    variables = answer["variables"]
    return variables[GLOO], variables[NCCL], answer["mtu"]


def _words(setting: tuple[str, str, Any]) -> str:
    gloo, nccl, mtu = setting
    return f"{GLOO}={gloo or '(not set)'}, {NCCL}={nccl or '(not set)'}, MTU {mtu}"
