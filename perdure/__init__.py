"""perdure: the state engine under AI agents."""
