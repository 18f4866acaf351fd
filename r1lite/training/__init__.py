"""The training stages: each is a function of one section of a recipe."""
