"""Current states, and what else is derived from the log: the projector, the cache it fills, reads, rebuilds, projections of your own."""
