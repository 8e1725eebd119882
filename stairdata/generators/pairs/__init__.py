"""Kinds `preference_pairs` and `prm_pairs`: pairs of nodes out of trees."""
