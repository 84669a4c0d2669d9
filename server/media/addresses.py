"""Which addresses the gateway may connect to for a client.

The networks are those of IANA's special-purpose registries that are not globally reachable, written out because
Python's own `is_global` differs between its patch releases, counts multicast as global, and knows no cloud's
metadata service outside link-local space.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

# Refused even for hosts that the operator trusts: whole-network addresses and the clouds' metadata services.
_NEVER_V4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "169.254.0.0/16",  # link-local: AWS, Google, Azure, OpenStack
        "168.63.129.16/32",  # Azure
        "100.100.100.200/32",  # Alibaba
        "192.0.0.192/32",  # Oracle
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
_NEVER_V6 = tuple(
    IPv6Network(network)
    for network in (
        "::/128",
        "fe80::/10",
        "ff00::/8",
        "fd00:ec2::/32",  # AWS
        "fd20:ce::/32",  # Google
    )
)
_NOT_PUBLIC_V4 = tuple(
    IPv4Network(network)
    for network in (
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
    )
)
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NOT_PUBLIC_V6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # Teredo, ORCHID and other protocols' own
        "2001:db8::/32",
        "2002::/16",  # 6to4: any IPv4 address can hide in it
        "3fff::/20",
    )
)
# The last 32 bits are an IPv4 address: NAT64 is how an IPv6-only machine reaches the public IPv4 hosts.
_NAT64 = IPv6Network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Whether an address is one of the public internet's hosts; IPv4 inside IPv6 counts as the IPv4 address."""
    ip = _unwrap(address)
    if isinstance(ip, IPv4Address):
        return not any(ip in network for network in (*_NEVER_V4, *_NOT_PUBLIC_V4))
    return ip in _GLOBAL_UNICAST and not any(ip in network for network in _NOT_PUBLIC_V6)


def is_usable(address: str) -> bool:
    """Whether a host that the operator trusts may have this address, public or private."""
    ip = _unwrap(address)
    if isinstance(ip, IPv4Address):
        return not any(ip in network for network in _NEVER_V4)
    return not any(ip in network for network in _NEVER_V6)


def _unwrap(address: str) -> IPv4Address | IPv6Address:
    ip = ip_address(address)
    if isinstance(ip, IPv6Address):
        if ip.ipv4_mapped is not None:
            return ip.ipv4_mapped
        if ip in _NAT64:
            return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip
