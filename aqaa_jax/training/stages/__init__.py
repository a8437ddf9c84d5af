"""One file per stage of the recipe: what to build, what to feed it, what to minimise."""
