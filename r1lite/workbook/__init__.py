"""The exercises from outside: generate, hint, solve, watch, and train with them."""
