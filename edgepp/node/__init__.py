"""A machine that joined: its agent, which talks to the coordinator, and the supervisors of its stage processes."""
