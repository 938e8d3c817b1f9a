"""One hand-written DNS query: does the cluster's DNS answer at its service address?"""

from __future__ import annotations

import secrets
import socket
import struct

from .layout import CLUSTER_DOMAIN, DNS_SERVICE_IP, KUBERNETES_SERVICE_IP


def question(name: str, identifier: int) -> bytes:
    """A recursive query for the IPv4 address of ``name`` (RFC 1035, section 4)."""
    header = struct.pack(">HHHHHH", identifier, 0x0100, 1, 0, 0, 0)
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return header + labels + b"\0" + struct.pack(">HH", 1, 1)


def answers_for_kubernetes() -> bool:
    """Whether `kubernetes.default` resolves to its service address, through kube-proxy and CoreDNS."""
    name = f"kubernetes.default.svc.{CLUSTER_DOMAIN}"
    identifier = secrets.randbelow(1 << 16)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(1)
        try:
            client.sendto(question(name, identifier), (DNS_SERVICE_IP, 53))
            answer = client.recv(512)
        except OSError:
            return False
    return answer[:2] == struct.pack(">H", identifier) and socket.inet_aton(KUBERNETES_SERVICE_IP) in answer
