"""The second drawn world: solid objects seen from any side, in the light of their place and hour.

It replaces :mod:`tave.roadside`, whose objects are flat, once a backbone is trained on it.
"""
