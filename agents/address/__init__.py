"""IPv4 addresses of network interfaces: what they look like, what to do about them, and the kernel calls that do it."""
