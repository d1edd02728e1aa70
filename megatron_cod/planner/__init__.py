"""How long a step of a launch takes on a named machine, and which layout is the fastest: arithmetic from the plan alone."""
