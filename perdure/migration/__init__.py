"""Live migration: an agent's ownership moves from one node to another while it is talked to."""
