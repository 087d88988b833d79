"""A request's life on the coordinator: embed, send round the ring, sample, stream."""
