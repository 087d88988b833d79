"""A machine in a cluster: its agent, which talks to the coordinator, and the supervisors of its stage processes."""
