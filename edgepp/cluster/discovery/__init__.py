"""Discovery of the coordinator: multicast DNS, remembered addresses, and this machine's network interfaces."""
