"""The log of events, the only truth: its rules, which are pure, the writer before it, and the two stores it is kept in."""
