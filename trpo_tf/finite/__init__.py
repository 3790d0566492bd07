"""Finite Markov decision processes: policies evaluated and improved exactly, by linear algebra. NumPy only.

S states, A actions, O observations; O is S where the policy sees the state.
"""
