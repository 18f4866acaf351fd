"""Multi-head latent attention: norm, rotary positions, cache, attention."""
