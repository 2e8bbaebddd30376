"""What people hold in their hands: the engine, agents, states."""
