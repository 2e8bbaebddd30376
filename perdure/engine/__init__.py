"""The engine: what events are and how they become states; the log and the bus they are kept in and published to; import."""
