"""Backups: the whole log in a store of objects, incremental, sealed, proven by restoring it."""
