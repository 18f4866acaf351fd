"""Mixture of experts: gating, balance, experts, dispatch and the layer."""
