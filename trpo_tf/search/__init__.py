"""Derivative-free search for the weights of a policy: candidates, one whole episode of each, a better mean."""
