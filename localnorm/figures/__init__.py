"""Tables, networks and images to figures, in one style; a module a figure, so that a stage depends on its own figure alone."""
