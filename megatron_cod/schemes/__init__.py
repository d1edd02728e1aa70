"""Norm schemes: the depth factor, the layer classes that bind it, initialisation policies, the table SCHEMES."""
