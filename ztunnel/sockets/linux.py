"""Socket options of linux/in.h and linux/in6.h that the socket module lacks."""

from __future__ import annotations

IP_FREEBIND = 15
IP_TRANSPARENT = 19
IPV6_TRANSPARENT = 75
IPV6_FREEBIND = 78
