"""Recovery: time travel, failure detection, hosts that own agents, and what is done when one is gone."""
