"""Moving agents between two engines: other servers, other keys, another region.

The steps and what holds at each of them stand in `mover`; the reasons in docs/adr/0014-between-engines.md.
"""
