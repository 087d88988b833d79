"""A machine in a cluster: an agent that talks to the coordinator, and supervisors of stage processes."""
