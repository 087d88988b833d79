"""Finding the coordinator on the network: multicast DNS, remembered addresses, and the interfaces of this machine."""
