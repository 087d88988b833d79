"""A ten-turn session of a coding agent, and the clients that send it: one for each API, in the shape of a real one."""
