"""Draw figures from tables, networks and images. Each figure has a module of its own, so that its stage depends on no other."""
