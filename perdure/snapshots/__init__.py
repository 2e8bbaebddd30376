"""Snapshots: states as compressed, sealed, verified objects in a store, so that no long log is replayed."""
